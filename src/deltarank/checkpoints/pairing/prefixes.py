"""Which tensor of the base a tensor of the finetune is: by name, else by name less what wraps it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from deltarank.checkpoints.escape import shown
from deltarank.checkpoints.formats.safetensors_header import TensorInfo
from deltarank.checkpoints.pairing.names import TECHNICAL, WRAPPERS
from deltarank.results import count

Tensors = Mapping[str, TensorInfo]


@dataclass(frozen=True)
class Matches:
    """`names` maps a finetune's name to the base's. `ambiguous` counts names that could have belonged to several."""

    names: Mapping[str, str]
    notes: tuple[str, ...]
    ambiguous: int


def match_names(base: Tensors, finetune: Tensors) -> Matches:
    """Equal names first. What is left is matched by its core, the name without wrappers, one to one.

    A pair of prefixes is believed if the shapes agree for more than half of the names that it maps. Each one that
    is believed is told in a note. Linear in the number of names.
    """
    names = {name: name for name in finetune if name in base}
    left_base = _bycore(name for name in base if name not in names)
    left_finetune = _bycore(name for name in finetune if name not in names)
    groups: dict[tuple[str, str], list[tuple[str, str]]] = {}
    ambiguous = 0
    for core, ours in left_finetune.items():
        theirs = left_base.get(core, [])
        if len(ours) == len(theirs) == 1:
            groups.setdefault((_prefix(theirs[0]), _prefix(ours[0])), []).append((ours[0], theirs[0]))
        elif theirs:
            ambiguous += len(ours)
    notes = []
    for (old, new), pairs in groups.items():
        if 2 * sum(_agree(finetune[ours], base[theirs]) for ours, theirs in pairs) > len(pairs):
            names.update(pairs)
            notes.append(_note(old, new, len(pairs)))
    return Matches(names, tuple(notes), ambiguous)


def _bycore(names: Iterable[str]) -> dict[str, list[str]]:
    cores: dict[str, list[str]] = {}
    for name in names:
        cores.setdefault(core(name), []).append(name)
    return cores


def _wrapped(parts: list[str]) -> int:
    """How many leading parts are wrappers; the last part is never one."""
    return next((i for i, part in enumerate(parts[:-1]) if part not in WRAPPERS), len(parts) - 1)


def core(name: str) -> str:
    """The name without what wraps it."""
    parts = name.split(".")
    return ".".join(part for part in parts[_wrapped(parts) :] if part not in TECHNICAL)


def _prefix(name: str) -> str:
    parts = name.split(".")
    return "".join(part + "." for part in parts[: _wrapped(parts)])


def _agree(ours: TensorInfo, theirs: TensorInfo) -> bool:
    """Equal shapes, or a vocabulary that grew."""
    return len(ours.shape) == len(theirs.shape) and ours.shape[1:] == theirs.shape[1:]


def _note(old: str, new: str, number: int) -> str:
    tensors = count(number, "tensor")
    if old == new:
        return f"wrappers inside the names, such as `_orig_mod.`, were passed over ({tensors})"
    if not old:
        return f"the finetune puts {shown(new)} before names of the base ({tensors})"
    if not new:
        return f"the base puts {shown(old)} before names of the finetune ({tensors})"
    return f"{shown(old)} of the base is {shown(new)} in the finetune ({tensors})"
