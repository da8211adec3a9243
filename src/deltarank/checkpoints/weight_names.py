"""What the name of a file says: weights, an adapter, the state of a training run, or a leftover of a system."""

from __future__ import annotations

import re
from collections.abc import Iterable

from deltarank.checkpoints.formats.gguf import GGUF_SUFFIX
from deltarank.checkpoints.formats.torch_pickle import PICKLE_SUFFIXES

SAFETENSORS = ".safetensors"
ADAPTER_CONFIG = "adapter_config.json"

_ADAPTER = re.compile(r"(?:adapter_.*|(?:\d+_)?adapters(?:\.safetensors|\.npz)|pytorch_lora_weights.*)", re.IGNORECASE)
"""PEFT, torchtune (adapter_0.pt), MLX (adapters.safetensors, 0000100_adapters.safetensors), diffusers."""

_TRAINING_STATE = re.compile(
    r"(?:(?:optim|optimizer|scheduler|lr_scheduler|scaler|rng_state|random_states|training_args|recipe_state"
    r"|dataloader|sampler|trainer_state|custom_checkpoint)(?![a-z]).*"
    r"|(?:v_head|value_head|non_lora_trainables|mm_projector)\.(?:bin|safetensors|pt))",
    re.IGNORECASE,
)
"""What trainers save beside the weights: states, and small heads that are not the model."""

_PART_OF_OTHER = re.compile(r"(?:mmproj|imatrix)[-_.].*|.*[-_.](?:mmproj|imatrix)\.gguf", re.IGNORECASE)
"""llama.cpp's projectors of images and importance matrices, beside the model's own GGUF file."""


def is_adapter(name: str) -> bool:
    return _ADAPTER.fullmatch(name) is not None


def is_training_state(name: str) -> bool:
    return _TRAINING_STATE.fullmatch(name) is not None


def is_leftover(name: str) -> bool:
    """A hidden file, such as `._model.safetensors`, which macOS leaves beside the real one."""
    return name.startswith(".")


def safetensors_weights(names: Iterable[str]) -> list[str]:
    """The safetensors files that may be weights of a whole model."""
    return [name for name in names if name.endswith(SAFETENSORS) and _may_be_weights(name)]


def gguf_weights(names: Iterable[str]) -> list[str]:
    return [name for name in names if name.endswith(GGUF_SUFFIX) and _may_be_weights(name)]


def pickled_weights(names: Iterable[str]) -> list[str]:
    return [name for name in names if name.lower().endswith(PICKLE_SUFFIXES) and _may_be_weights(name)]


def _may_be_weights(name: str) -> bool:
    return not (
        "/" in name
        or is_leftover(name)
        or is_adapter(name)
        or is_training_state(name)
        or _PART_OF_OTHER.fullmatch(name)
    )
