"""From the names of tensors in files to the names that PEFT gives to modules, factors and targets."""

from __future__ import annotations

import re
from collections.abc import Collection, Container, Iterable
from dataclasses import dataclass

PREFIX = "base_model.model."
"""What PEFT puts before the names of the model's tensors."""

_WEIGHT = ".weight"
# PEFT reads names as paths of Python attributes, and some as regular expressions, so no other characters are allowed.
_MODULE_PATH = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_LAYER_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")
_MAX_LENGTH = 512


def module_path(tensor: str) -> str | None:
    """ "model.layers.0.mlp.up_proj.weight" -> "model.layers.0.mlp.up_proj"; None for anything else."""
    module = tensor.removesuffix(_WEIGHT)
    return module if tensor.endswith(_WEIGHT) and is_module_path(module) else None


def is_module_path(name: str) -> bool:
    """Whether untrusted text can be the path of a module."""
    return len(name) <= _MAX_LENGTH and _MODULE_PATH.fullmatch(name) is not None


@dataclass(frozen=True)
class FactorKey:
    """The key of A (`is_down`) or B. `adapter_name` is "default" for "NAME.lora_A.default.weight", and mostly empty."""

    module: str
    is_down: bool
    is_embedding: bool = False
    has_prefix: bool = True
    adapter_name: str = ""

    def __str__(self) -> str:
        side, name = "A" if self.is_down else "B", f".{self.adapter_name}" if self.adapter_name else ""
        ending = f"lora_embedding_{side}{name}" if self.is_embedding else f"lora_{side}{name}.weight"
        return f"{PREFIX if self.has_prefix else ''}{self.module}.{ending}"


@dataclass(frozen=True)
class StoredKey:
    """The key of a tensor that is no factor: a bias beside factors (`is_lora_bias`), or a whole tensor of the model.

    is_wrapped   it is inside a module that also has a LoRA (`base_layer`)
    """

    module: str
    tensor: str
    is_lora_bias: bool = False
    is_wrapped: bool = False
    has_prefix: bool = True
    adapter_name: str = ""


_NAME = r"(?:\.(?P<name>[^.]+))?"
_LINEAR = re.compile(rf"\.lora_(?P<side>[AB]){_NAME}\.(?P<end>weight|bias)")
_EMBEDDING = re.compile(rf"\.lora_embedding_(?P<side>[AB]){_NAME}")
_ORIGINAL_MODULE = ".original_module."
_SAVED_MODULE = ".modules_to_save."
_OTHER_METHODS = (".lora_", ".token_adapter.", _ORIGINAL_MODULE, _SAVED_MODULE)
_BASE_LAYER = ".base_layer."


def parse_key(key: str) -> FactorKey | StoredKey | None:
    """What the key of a tensor in an adapter means; None for a tensor that is no part of a plain LoRA."""
    has_prefix = key.startswith(PREFIX)
    rest = key.removeprefix(PREFIX)
    start = rest.rfind(".lora_")
    module = rest[: max(start, 0)]
    if start > 0 and (match := _EMBEDDING.fullmatch(rest, start)):
        return FactorKey(module, match["side"] == "A", True, has_prefix, match["name"] or "")
    if start > 0 and (match := _LINEAR.fullmatch(rest, start)):
        name = match["name"] or ""
        if match["end"] == "weight":
            return FactorKey(module, match["side"] == "A", False, has_prefix, name)
        if match["side"] == "B":
            return StoredKey(module, f"{module}.bias", True, has_prefix=has_prefix, adapter_name=name)
    if any(mark in rest for mark in _OTHER_METHODS) or "." not in rest:
        return None
    tensor = rest.replace(_BASE_LAYER, ".")
    return StoredKey(tensor.rpartition(".")[0], tensor, is_wrapped=_BASE_LAYER in rest, has_prefix=has_prefix)


def without_wrapper(key: str) -> str:
    """ "X.lm_head.modules_to_save.weight" and "X.lm_head.original_module.weight" -> "X.lm_head.weight".

    Where the vocabulary was resized, PEFT saves both beside the plain key.
    """
    return key.replace(_SAVED_MODULE, ".").replace(_ORIGINAL_MODULE, ".")


def is_second_key(key: str, keys: Container[str]) -> bool:
    """Whether PEFT saved a tensor beside that of the plain key, which is the one that it loads."""
    plain = without_wrapper(key)
    return plain != key and plain in keys


def factor_keys(module: str) -> tuple[str, str]:
    """The keys of A (r, inputs) and B (outputs, r)."""
    return f"{PREFIX}{module}.lora_A.weight", f"{PREFIX}{module}.lora_B.weight"


def bias_key(module: str) -> str:
    """The key of a bias beside the factors of a module (`lora_bias`)."""
    return f"{PREFIX}{module}.lora_B.bias"


def whole_tensor_key(tensor: str) -> str:
    """The key of a tensor of a module in `modules_to_save`."""
    return f"{PREFIX}{tensor}"


def module_type(module: str) -> str:
    """The module with its layer number replaced, the same in all layers.

    "model.layers.17.mlp.up_proj" -> "model.layers.#.mlp.up_proj"
    """
    return _LAYER_NUMBER.sub("#", module)


def exact_targets(wanted: Collection[str], modules: Collection[str]) -> list[str]:
    """The shortest `target_modules` that match the wanted modules of a model and nothing else of it.

    PEFT matches a name with every module that ends in it. The last component is enough where all modules that end in
    it are wanted; otherwise each wanted module is named in full.

    Args:
        wanted: the modules to match.
        modules: all modules of the model, those that only contain others included.
    """
    others = {leaf(path) for path in set(modules) - set(wanted)}
    targets = {leaf(module) if leaf(module) not in others else module for module in wanted}
    return sorted(targets, key=_natural_order)


def implied_modules(tensors: Iterable[str]) -> set[str]:
    """All modules that names of tensors imply, including those that only contain others."""
    paths: set[str] = set()
    for tensor in tensors:
        path = tensor
        while "." in path:
            path = path.rpartition(".")[0]
            if path in paths:
                break
            paths.add(path)
    return paths


def leaf(path: str) -> str:
    """The last component of a module's path."""
    return path.rpartition(".")[2]


def _natural_order(name: str) -> list[tuple[int, str]]:
    """A sort key by which layer 2 comes before layer 10."""
    return [(int(part), "") if part.isdecimal() and len(part) < 9 else (-1, part) for part in name.split(".")]
