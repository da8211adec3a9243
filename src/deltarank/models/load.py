"""Checkpoints as models: configuration, tokenizer, and a transformers model filled with a candidate's numbers.

Names are transformers' business: what renames and fuses tensors when it loads a folder does so here, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, GenerationConfig
from transformers import AutoModelForCausalLM as _AutoModel
from transformers.utils import logging as _logging

from deltarank.checkpoints import Checkpoint
from deltarank.errors import CheckpointError, JobError, UsageError
from deltarank.models.weights import Weights, strange_dtypes
from deltarank.results import listing
from deltarank.system import import_silently

AnyModel = Any
"""A transformers model: its class is that of the architecture."""

# Much of transformers is untyped.
AutoModelForCausalLM: Any = _AutoModel
logging: Any = _logging

import_silently("transformers.quantizers.auto")  # loading a model does so; it pulls in every quantiser there is

_CURE_HOME = "Give a folder as transformers saves it, with config.json and the tokenizer's files beside the weights."


@dataclass(frozen=True)
class ModelFolder:
    """Where a checkpoint's configuration and tokenizer are: a folder, or a repository on the Hub at a commit."""

    place: str
    revision: str | None = None

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> ModelFolder:
        reference = checkpoint.reference
        path = Path(reference.ref).expanduser()
        if path.exists():
            return cls(str(path if path.is_dir() else path.parent))
        return cls(reference.ref.removeprefix("hf://").split("@")[0], reference.revision)

    @property
    def options(self) -> dict[str, Any]:
        """A folder is never looked up on the Hub."""
        return {"local_files_only": True} if Path(self.place).is_dir() else {"revision": self.revision}


@dataclass(frozen=True)
class ModelSkeleton:
    """All that makes a model of a checkpoint but its numbers.

    skeleton         on the meta device: names and shapes, no memory
    """

    home: ModelFolder
    config: Any
    skeleton: AnyModel
    trusted: bool

    @property
    def vocabulary(self) -> int:
        """Rows of the input embedding."""
        return int(self.skeleton.get_input_embeddings().weight.shape[0])

    @property
    def context(self) -> int:
        """The longest text that the model takes, in tokens."""
        text = self.config.get_text_config()
        for name in ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length"):
            if isinstance(length := getattr(text, name, None), int) and length > 0:
                return length
        return 2048

    @property
    def parameters(self) -> int:
        return sum(weight.numel() for weight in self.skeleton.parameters())


def model_skeleton(checkpoint: Checkpoint, *, trust_remote_code: bool = False) -> ModelSkeleton:
    """Reads configurations, and no weights.

    Raises:
        CheckpointError: there is no configuration, or it is not that of a language model that transformers knows.
        UsageError: (slug "remote-code") it can only be built by a program that came with it.
        JobError: (slug "quantised-model") its numbers are stored in a way that needs a library of its own.
    """
    home = ModelFolder.of(checkpoint)
    _refuse_quantised(checkpoint)
    if "auto_map" in checkpoint.config and not trust_remote_code:
        _refuse_remote_code(checkpoint)
    try:
        with _quietly():
            config = AutoConfig.from_pretrained(home.place, trust_remote_code=trust_remote_code, **home.options)
            if hasattr(config, "quantization_config"):  # the numbers that are handed over are decoded already
                del config.quantization_config
            with torch.device("meta"):
                skeleton = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError, AttributeError, TypeError) as error:
        raise CheckpointError(
            f"{home.place!a} cannot be built as a language model: {_first_line(error)}",
            cure=_CURE_HOME + " A newer transformers may know an architecture that this one does not.",
            slug="not-a-language-model",
        ) from error
    return ModelSkeleton(home, config, skeleton, trust_remote_code)


def _refuse_remote_code(checkpoint: Checkpoint) -> None:
    """An architecture that transformers has itself is built by transformers, whatever its configuration offers."""
    known = AutoConfig.for_model
    try:
        config = known(str(checkpoint.config.get("model_type")))
    except ValueError:
        config = None
    if config is not None and type(config) in AutoModelForCausalLM._model_mapping:
        return
    raise UsageError(
        f"{checkpoint.reference.ref!a} can only be built by a program that came with it, and that is not run unasked.",
        cure="Read the .py files beside its weights; if you trust them, add --trust-remote-code.",
        slug="remote-code",
    )


def _refuse_quantised(checkpoint: Checkpoint) -> None:
    """What the files' reader decodes is plain here; what it does not would be taken for the weights themselves."""
    strange = strange_dtypes(checkpoint)
    if not strange:
        return
    name, kind = next(iter(strange.items()))
    raise JobError(
        f"{checkpoint.reference.ref!a} is stored quantised ({name!a} is stored as {kind!a}); here it can only be run "
        "from plain weights.",
        cure="Give the checkpoint that it was made from, or dequantise it: load it with transformers and "
        "`save_pretrained` it.",
        slug="quantised-model",
    )


def tokenizer_of(home: ModelFolder, *, trust_remote_code: bool = False) -> Any:
    """Raises CheckpointError (slug "no-tokenizer") if there is none, or it cannot be read."""
    try:
        with _quietly():
            return AutoTokenizer.from_pretrained(home.place, trust_remote_code=trust_remote_code, **home.options)
    except Exception as error:  # whatever tokenizers, sentencepiece and their converters raise
        raise CheckpointError(
            f"{home.place!a} has no tokenizer that can be read: {_first_line(error)}",
            cure=_CURE_HOME,
            slug="no-tokenizer",
        ) from error


def load(plan: ModelSkeleton, weights: Weights, *, dtype: torch.dtype, device: torch.device) -> AnyModel:
    """The model whole on `device`, in evaluation mode, as `from_pretrained` of a folder with these numbers would be.

    Raises:
        CheckpointError: a tensor cannot be read, or the model wants tensors that the files do not hold.
    """
    with _quietly():
        model, report = type(plan.skeleton).from_pretrained(
            None,
            config=plan.skeleton.config,
            state_dict=dict(weights),
            dtype=dtype,
            device_map={"": str(device)},
            output_loading_info=True,
        )
    _refuse_incomplete(plan, report["missing_keys"])
    return _finished(model, plan)


def _refuse_incomplete(plan: ModelSkeleton, missing: Any) -> None:
    if missing:
        raise CheckpointError(
            f"{plan.home.place!a} lacks {listing([ascii(name) for name in sorted(missing)], most=3)}: the model of its "
            "config.json has them.",
            cure="Finish the download or copy, or give the config.json that belongs to these weights.",
            slug="weights-incomplete",
        )


def _finished(model: AnyModel, plan: ModelSkeleton) -> AnyModel:
    """With the tokens that end an answer, which stand in a file of their own."""
    try:
        with _quietly():
            model.generation_config = GenerationConfig.from_pretrained(plan.home.place, **plan.home.options)
    except OSError:
        pass  # most toys have none: then the configuration's tokens count
    model.requires_grad_(False)
    return model.eval()


class Streamed(Mapping[str, Tensor]):
    """A model's parameters by its own names, each made anew whenever it is asked for."""

    def __init__(self, plan: ModelSkeleton, weights: Weights, dtype: torch.dtype) -> None:
        self._weights, self._dtype = weights, dtype
        self._names = _names(plan, weights)

    def __getitem__(self, name: str) -> Tensor:
        made = self._weights.tensor(self._names[name])
        return made.to(self._dtype) if made.is_floating_point() else made

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _names(plan: ModelSkeleton, weights: Weights) -> dict[str, str]:
    """From the model's names to those of the files.

    Raises:
        JobError: (slug "cannot-stream") a tensor of the model is put together from several of the files'.
    """
    prefix = f"{plan.skeleton.base_model_prefix}."
    tied = dict(getattr(plan.skeleton, "all_tied_weights_keys", None) or {})
    shapes = {name: tuple(tensor.shape) for name, tensor in plan.skeleton.state_dict().items()}
    found, missing = {}, []
    for name, shape in shapes.items():
        own = [each for each in (name, tied.get(name)) if each is not None]
        spellings = [word for each in own for word in (each, each.removeprefix(prefix), prefix + each)]
        match = next((each for each in spellings if _has(weights, each, shape)), None)
        if match is None:
            missing.append(name)
        else:
            found[name] = match
    if missing:
        raise JobError(
            f"{plan.home.place!a} does not fit into memory whole, and its tensors cannot be streamed: transformers "
            f"makes {listing([ascii(name) for name in missing], most=2)} out of others (fused experts, new names).",
            cure="Use a machine with more memory, or --dtype bfloat16.",
            slug="cannot-stream",
        )
    return found


def _has(weights: Weights, name: str, shape: tuple[int, ...]) -> bool:
    info = weights.checkpoint.tensors.get(name)
    return info is not None and tuple(info.shape) == shape


def stream(
    plan: ModelSkeleton, weights: Weights, *, dtype: torch.dtype, device: torch.device
) -> tuple[AnyModel, Streamed]:
    """The model with no memory of its own, and its numbers: they are made when a layer is run, and dropped after it.

    Slow, for every forward pass reads the whole checkpoint; but a model of any size passes through.

    Raises:
        JobError: (slug "cannot-stream") see `Streamed`.
    """
    from accelerate import cpu_offload, init_empty_weights

    numbers = Streamed(plan, weights, dtype)
    with _quietly(), init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(plan.config, dtype=dtype, trust_remote_code=plan.trusted)
    for name, buffer in model.named_buffers():
        if name in numbers:
            buffer.copy_(numbers[name])
    model.tie_weights()
    return _finished(cpu_offload(model, execution_device=device, state_dict=numbers), plan), numbers


def output_head(plan: ModelSkeleton, numbers: Streamed) -> tuple[Tensor | None, Tensor | None]:
    """The weight and bias of a streamed model's output head, which it does not hold."""
    head = plan.skeleton.get_output_embeddings()
    name = next((name for name, module in plan.skeleton.named_modules() if module is head), "")
    weight, bias = (f"{name}.{part}" for part in ("weight", "bias"))
    return numbers.get(weight), numbers.get(bias)


def file_names(plan: ModelSkeleton, weights: Weights) -> dict[str, str] | None:
    """From the model's names to the files', where each of its tensors is one of theirs; else None."""
    try:
        return _names(plan, weights)
    except JobError:
        return None


@contextmanager
def _quietly() -> Iterator[None]:
    """No bars and no remarks of transformers: what matters is said by us."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _first_line(error: BaseException) -> str:
    line = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {line[:300]}"
