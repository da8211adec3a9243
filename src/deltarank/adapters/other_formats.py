"""LoRAs in the formats of other tools, which are refused by name, with what converts them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from deltarank.checkpoints import Checkpoint, open_checkpoint, quoted
from deltarank.errors import AdapterError, DeltarankError

_IMAGE_CURE = (
    "Merge it: load the pipeline with diffusers, `load_lora_weights(FILE)`, `fuse_lora()`, and save its `transformer` "
    "or `unet` with `save_pretrained`. Then compare that folder with the base's."
)


@dataclass(frozen=True)
class OtherAdapter:
    """A format by the names of its tensors.

    keys   matches the beginning of a tensor's name, or all of it
    what   "a LoRA of mistral-finetune"
    """

    keys: re.Pattern[str]
    what: str
    cure: str


def _format(keys: str, what: str, cure: str) -> OtherAdapter:
    return OtherAdapter(re.compile(keys), what, cure)


_OTHER_TOOLS = (
    _format(
        r"lora_(?:unet|te\d?|transformer|prior\w*)_\w+\.(?:lora_(?:down|up)\.weight|alpha|dora_scale)",
        "a LoRA of kohya's sd-scripts, for a model of images",
        _IMAGE_CURE,
    ),
    _format(
        r"(?:diffusion_model|unet|transformer|text_encoder(?:_\d)?)\..*\.(?:lora(?:_\w+)*[._](?:A|B|down|up)\.\w+|alpha)",
        "a LoRA of diffusers or ComfyUI, for a model of images",
        _IMAGE_CURE,
    ),
    _format(
        r"layers\.\d+\.(?:attention|feed_forward)\.w\w\.lora_[AB]\.weight",
        "a LoRA of mistral-finetune",
        "Merge it into Mistral's own weights with mistral-finetune's `python -m utils.merge_lora`, and convert these "
        "with transformers' `convert_mistral_weights_to_hf.py`.",
    ),
    _format(
        r"(?:(?:decoder|encoder)\.)?layers\.\d+\.\w+\.\w+\.(?:lora_[ab]\.weight|magnitude)",
        "a LoRA of torchtune",
        "Give the files that torchtune's checkpointer for Hugging Face writes beside it, adapter_model and "
        "adapter_config.json; or its merged weights.",
    ),
    _format(
        r"(?:blk\.\d+\.\w+|output|token_embd)\.weight\.lora_[ab]",
        "a LoRA in a GGUF file",
        "Give the PEFT adapter that it was converted from.",
    ),
)

_WITHOUT_CONFIG = (
    _format(
        r".*\.lora_[ab]",
        "a LoRA of mlx-lm without its adapter_config.json, which holds the scale",
        "Give its folder, with adapter_config.json and adapters.safetensors.",
    ),
    _format(
        r".*\.lora_(?:down|up)\.weight|.*\.lora[._]?(?:embedding_)?[AB](?:\.\w+)?(?:\.weight)?",
        "the weights of a LoRA without its adapter_config.json, which holds the scale",
        "Give its folder, with adapter_config.json and adapter_model.safetensors, as PEFT writes it.",
    ),
)
_MOST_READ = 10_000
_MOST_FILES = 16
_SUFFIXES = (".safetensors", ".bin", ".pt", ".gguf")


def refuse_other_adapters_in(folder: Path) -> None:
    """The same for a folder without a whole checkpoint: its files are opened to see what they are."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    for file in [each for each in files if each.suffix in _SUFFIXES][:_MOST_FILES]:
        try:
            checkpoint = open_checkpoint(file)
        except DeltarankError:
            continue
        with checkpoint:
            refuse_other_adapter(checkpoint)


def refuse_other_adapter(checkpoint: Checkpoint, *, has_config: bool = False) -> None:
    """Raises AdapterError (slug "adapter-other-format") if most of a checkpoint's tensors are factors of a LoRA.

    Args:
        has_config: adapter_config.json is beside it, so that its format must be another tool's.
    """
    known = list(islice(checkpoint.tensors, _MOST_READ))
    formats = _OTHER_TOOLS if has_config else (*_OTHER_TOOLS, *_WITHOUT_CONFIG)
    found = [(name, each) for name in known if (each := _find(name, formats)) is not None]
    if 2 * len(found) > len(known):
        checkpoint.close()
        name, other = found[0]
        raise AdapterError(
            f"{quoted(checkpoint.reference.ref, max_length=300)} is {other.what}, which is not read (such as "
            f"{quoted(name)}).",
            cure=other.cure,
            slug="adapter-other-format",
        )


def _find(name: str, formats: Sequence[OtherAdapter]) -> OtherAdapter | None:
    return next((each for each in formats if each.keys.fullmatch(name)), None)
