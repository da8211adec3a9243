"""Between the names of tensors in files and the names that PEFT gives to modules, factors and targets."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

PREFIX = "base_model.model."
"""What PEFT puts before the names of the model's tensors."""

_WEIGHT = ".weight"
# PEFT reads names as paths of Python attributes, and some as regular expressions: nothing else is let through.
_MODULE = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")
_MOST = 512


def module_path(tensor: str) -> str | None:
    """ "model.layers.0.mlp.up_proj.weight" -> "model.layers.0.mlp.up_proj"; None for what is no module's weight."""
    module = tensor.removesuffix(_WEIGHT)
    return module if tensor.endswith(_WEIGHT) and is_module_path(module) else None


def is_module_path(name: str) -> bool:
    """Whether a stranger's text can be the path of a module."""
    return len(name) <= _MOST and _MODULE.fullmatch(name) is not None


def factor_keys(module: str) -> tuple[str, str]:
    """The keys of A (r, inputs) and B (outputs, r)."""
    return f"{PREFIX}{module}.lora_A.weight", f"{PREFIX}{module}.lora_B.weight"


def bias_key(module: str) -> str:
    """The key of a bias beside the factors of a module (`lora_bias`)."""
    return f"{PREFIX}{module}.lora_B.bias"


def whole_tensor_key(tensor: str) -> str:
    """The key of a tensor that `modules_to_save` carries."""
    return f"{PREFIX}{tensor}"


def module_type(module: str) -> str:
    """Equal for the same module of all layers: "model.layers.17.mlp.up_proj" -> "model.layers.#.mlp.up_proj"."""
    return _NUMBER.sub("#", module)


def exact_targets(wanted: Collection[str], tensors: Iterable[str]) -> list[str]:
    """The shortest `target_modules` that match the wanted modules of a model and nothing else of it.

    PEFT takes a name for every module that ends in it. The last word does where all modules of that word are wanted;
    else each wanted module is written out.

    Args:
        wanted: modules.
        tensors: the names of all tensors of the model, which tell what else there is.
    """
    others = _leaves(_paths(tensors) - set(wanted))
    targets = {leaf if (leaf := _leaf(module)) not in others else module for module in wanted}
    return sorted(targets, key=_natural)


def _paths(tensors: Iterable[str]) -> set[str]:
    """All modules that the names speak of, those that only hold others among them."""
    paths: set[str] = set()
    for tensor in tensors:
        path = tensor
        while "." in path:
            path = path.rpartition(".")[0]
            if path in paths:
                break
            paths.add(path)
    return paths


def _leaves(paths: Iterable[str]) -> set[str]:
    return {_leaf(path) for path in paths}


def _leaf(path: str) -> str:
    return path.rpartition(".")[2]


def _natural(name: str) -> list[tuple[int, str]]:
    """Layer 2 before layer 10."""
    return [(int(part), "") if part.isdecimal() and len(part) < 9 else (-1, part) for part in name.split(".")]
