"""Matches the tensors of base and finetune by name, and the rest by their names without wrapper prefixes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from deltarank.checkpoints.escape import quoted
from deltarank.checkpoints.formats.safetensors_header import TensorInfo
from deltarank.results import count
from deltarank.tensor_names import INNER_WRAPPERS, wrapper_count

Tensors = Mapping[str, TensorInfo]


@dataclass(frozen=True)
class NameMatches:
    """`names` maps a finetune's name to the base's. `ambiguous` counts names with several candidates."""

    names: Mapping[str, str]
    notes: tuple[str, ...]
    ambiguous: int


def match_names(base: Tensors, finetune: Tensors) -> NameMatches:
    """Equal names first; the rest by their core names (without wrappers), one to one.

    A pair of prefixes is accepted if the shapes agree for more than half of the names that it matches. Each accepted
    pair is reported in a note. Linear in the number of names.
    """
    names = {name: name for name in finetune if name in base}
    base_cores = _by_core_name(name for name in base if name not in names)
    finetune_cores = _by_core_name(name for name in finetune if name not in names)
    by_prefixes: dict[tuple[str, str], list[tuple[str, str]]] = {}
    ambiguous = 0
    for core, finetune_names in finetune_cores.items():
        base_names = base_cores.get(core, [])
        if len(finetune_names) == len(base_names) == 1:
            [finetune_name], [base_name] = finetune_names, base_names
            prefixes = (_prefix(base_name), _prefix(finetune_name))
            by_prefixes.setdefault(prefixes, []).append((finetune_name, base_name))
        elif base_names:
            ambiguous += len(finetune_names)
    notes = []
    for prefixes, pairs in by_prefixes.items():
        agreeing = sum(_shapes_agree(finetune[name].shape, base[base_name].shape) for name, base_name in pairs)
        if 2 * agreeing > len(pairs):
            names.update(pairs)
            notes.append(_note(*prefixes, len(pairs)))
    return NameMatches(names, tuple(notes), ambiguous)


def core_name(name: str) -> str:
    """The name without wrappers."""
    parts = name.split(".")
    return ".".join(part for part in parts[wrapper_count(parts) :] if part not in INNER_WRAPPERS)


def _by_core_name(names: Iterable[str]) -> dict[str, list[str]]:
    cores: dict[str, list[str]] = {}
    for name in names:
        cores.setdefault(core_name(name), []).append(name)
    return cores


def _prefix(name: str) -> str:
    parts = name.split(".")
    return "".join(part + "." for part in parts[: wrapper_count(parts)])


def _shapes_agree(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Equal shapes but for the rows: a vocabulary may have grown."""
    return len(one) == len(other) and one[1:] == other[1:]


def _note(base_prefix: str, finetune_prefix: str, number: int) -> str:
    tensors = count(number, "tensor")
    if base_prefix == finetune_prefix:
        return f"wrappers inside the names, such as `_orig_mod.`, were ignored ({tensors})"
    if not base_prefix:
        return f"the finetune prefixes names of the base with {quoted(finetune_prefix)} ({tensors})"
    if not finetune_prefix:
        return f"the base prefixes names of the finetune with {quoted(base_prefix)} ({tensors})"
    return f"the prefix {quoted(base_prefix)} of the base is {quoted(finetune_prefix)} in the finetune ({tensors})"
