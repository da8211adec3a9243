"""A checkpoint's model without its weights: configuration, architecture, and names and shapes of its tensors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig
from transformers import AutoModelForCausalLM as _AutoModelForCausalLM

from deltarank.architectures import first_line, silence_transformers
from deltarank.checkpoints import Checkpoint
from deltarank.errors import CheckpointError, JobError, UsageError
from deltarank.models.weights import quantised_tensors
from deltarank.results import Reference

AnyModel = Any
"""A transformers model, whose class is that of its architecture."""

AutoModelForCausalLM: Any = _AutoModelForCausalLM  # untyped

FOLDER_CURE = "Give a folder as transformers saves it, with config.json and the tokenizer's files beside the weights."

_DEFAULT_CONTEXT = 2048


@dataclass(frozen=True)
class ModelFolder:
    """Where a checkpoint's configuration and tokenizer are: a local folder, or a Hub repository at a revision."""

    name_or_path: str
    revision: str | None = None

    @classmethod
    def of_checkpoint(cls, checkpoint: Checkpoint) -> ModelFolder:
        """Of an adapter, those of its base."""
        return cls.of_reference(checkpoint.run_as or checkpoint.reference)

    @classmethod
    def of_reference(cls, reference: Reference) -> ModelFolder:
        path = Path(reference.ref)
        if path.exists():
            return cls(str(path if path.is_dir() else path.parent))
        return cls(reference.ref, reference.revision)

    @property
    def options(self) -> dict[str, Any]:
        """Options of `from_pretrained`. A local folder is never looked up on the Hub."""
        return {"local_files_only": True} if Path(self.name_or_path).is_dir() else {"revision": self.revision}


@dataclass(frozen=True)
class ModelSkeleton:
    """Everything that makes a model out of a checkpoint, except its weights.

    folder           of its configuration: that of the base for an adapter
    own_folder       of the checkpoint itself, whose tokenizer it has if there is one
    meta_model       the model on the meta device: names and shapes that take no memory
    """

    folder: ModelFolder
    own_folder: ModelFolder
    config: Any
    meta_model: AnyModel
    trust_remote_code: bool

    @property
    def vocabulary(self) -> int:
        """Rows of the input embedding."""
        return int(self.meta_model.get_input_embeddings().weight.shape[0])

    @property
    def context(self) -> int:
        """The longest text that the model takes, in tokens."""
        text = self.config.get_text_config()
        for name in ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length"):
            if isinstance(length := getattr(text, name, None), int) and length > 0:
                return length
        return _DEFAULT_CONTEXT

    @property
    def parameters(self) -> int:
        return sum(weight.numel() for weight in self.meta_model.parameters())

    @property
    def hidden_size(self) -> int:
        """0 if the configuration does not say."""
        return int(getattr(self.config.get_text_config(), "hidden_size", 0) or 0)

    @property
    def cache_entries(self) -> int:
        """Keys and values that one token leaves in the cache; 0 if the configuration does not say."""
        text = self.config.get_text_config()
        layers, heads = (int(getattr(text, name, 0) or 0) for name in ("num_hidden_layers", "num_attention_heads"))
        groups = int(getattr(text, "num_key_value_heads", 0) or heads)
        width = int(getattr(text, "head_dim", 0) or self.hidden_size // max(heads, 1))
        return 2 * layers * groups * width

    @property
    def softcaps_logits(self) -> bool:
        return softcaps_logits(self.config)

    @property
    def changes_logits(self) -> bool:
        """Whether a softcap or a scale (Cohere, Granite, Falcon H1) follows the output head."""
        config = self.config.get_text_config()
        return self.softcaps_logits or any(getattr(config, name, None) not in (None, 1) for name in _LOGIT_SCALES)


_LOGIT_SCALES = ("logit_scale", "logits_scaling", "lm_head_multiplier")


def softcaps_logits(config: Any) -> bool:
    """Whether the model passes its logits through a softcap (Gemma 2), so that the output head is not its last step."""
    return bool(getattr(config.get_text_config(), "final_logit_softcapping", None))


def read_skeleton(checkpoint: Checkpoint, *, trust_remote_code: bool = False) -> ModelSkeleton:
    """Reads the configuration of a checkpoint, and no weights.

    Raises:
        CheckpointError: (slug "not-a-language-model") there is no configuration of a language model that transformers
            knows.
        UsageError: (slug "remote-code") the model needs custom Python code from the checkpoint.
        JobError: (slug "quantised-model") weights are stored in a quantised format that cannot be decoded.
    """
    folder = ModelFolder.of_checkpoint(checkpoint)
    _refuse_gguf(checkpoint)
    _refuse_quantised(checkpoint)
    if "auto_map" in checkpoint.config and not trust_remote_code:
        _refuse_remote_code(checkpoint)
    try:
        with silence_transformers():
            config = AutoConfig.from_pretrained(
                folder.name_or_path, trust_remote_code=trust_remote_code, **folder.options
            )
            if hasattr(config, "quantization_config"):  # the model gets weights that are already dequantised
                del config.quantization_config
            if checkpoint.run_as is not None:  # an adapter may have an output head that the base ties to its embedding
                config.tie_word_embeddings = checkpoint.config.get("tie_word_embeddings", config.tie_word_embeddings)
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError, AttributeError, TypeError) as error:
        raise CheckpointError(
            f"{folder.name_or_path!a} cannot be built as a language model: {first_line(error)}",
            cure=FOLDER_CURE + " A newer version of transformers may know this architecture.",
            slug="not-a-language-model",
        ) from error
    return ModelSkeleton(folder, ModelFolder.of_reference(checkpoint.reference), config, model, trust_remote_code)


def _refuse_gguf(checkpoint: Checkpoint) -> None:
    """transformers would say that the folder has no config.json, and not why a GGUF file alone is not enough."""
    files = checkpoint.reference.files
    if files and not checkpoint.config and all(name.lower().endswith(".gguf") for name in files):
        raise CheckpointError(
            f"{checkpoint.reference.ref!a} is GGUF without a config.json: its weights can be compared, but the model "
            "cannot be run.",
            cure="Give the checkpoint that the GGUF file was made from, with its config.json and its tokenizer.",
            slug="not-a-language-model",
        )


def _refuse_remote_code(checkpoint: Checkpoint) -> None:
    """An architecture that transformers has is built by transformers, even if the checkpoint comes with code for it."""
    for_model: Any = AutoConfig.for_model
    try:
        config = for_model(str(checkpoint.config.get("model_type")))
    except ValueError:
        config = None
    if config is not None and type(config) in AutoModelForCausalLM._model_mapping:
        return
    raise UsageError(
        f"{checkpoint.reference.ref!a} needs custom Python code from the checkpoint, which is not run by default.",
        cure="Read the .py files beside its weights. If you trust them, add --trust-remote-code.",
        slug="remote-code",
    )


def _refuse_quantised(checkpoint: Checkpoint) -> None:
    """Tensors that the checkpoint could not decode would be taken for plain weights."""
    if quantised := quantised_tensors(checkpoint):
        name, dtype = next(iter(quantised.items()))
        raise JobError(
            f"{checkpoint.reference.ref!a} is quantised ({name!a} is stored as {dtype!a}) in a format that cannot be "
            "decoded here.",
            cure="Give the checkpoint that it was made from, or dequantise it: load it with transformers and "
            "`save_pretrained` it.",
            slug="quantised-model",
        )
