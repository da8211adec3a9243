"""Where an adapter's parts land: which tensor of the checkpoints each one changes, and whether it fits there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from deltarank.adapters._read import Kind, Part
from deltarank.checkpoints import Leftover, Pair, without_wrappers

Target = Leftover | Pair

MOST_RANKS = 4
"""Times the longer side: factors of a higher rank would take more memory than the tensor that they are for."""

_INPUTS_FIRST = frozenset({"gpt_oss", "aria", "aria_text", "openai_privacy_filter"})
"""Model types whose fused experts are stored as (experts, inputs, outputs)."""

_CONV1D = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})
"""Model types whose linear layers store inputs x outputs (transformers' Conv1D), whatever the adapter says."""


@dataclass(frozen=True)
class Landing:
    """A part and the tensor that it changes.

    transposed       the tensor is stored as inputs x outputs: what is added is (B A)'
    """

    part: Part
    target: Target
    transposed: bool


@dataclass(frozen=True)
class Stack:
    """Matrices in one tensor, by the name that an adapter uses for it."""

    name: str
    slices: tuple[Target, ...]


class Map:
    """Finds tensors by the names that adapters use: as they are, or less what a wrapper put before them."""

    def __init__(self, targets: Iterable[Target]) -> None:
        self._exact: dict[str, Target] = {}
        self._cores: dict[str, Target | None] = {}
        self._stacks: dict[str, dict[str, list[Target]]] = {}
        for target in targets:
            if is_slice := target.name.startswith(f"{target.finetune.tensor}["):
                name = target.name.rpartition("[")[0]
                holder = self._stacks.setdefault(_core(name.rpartition(".")[0]), {})
                holder.setdefault(name.rpartition(".")[2], []).append(target)
            names = {target.name} if is_slice else {target.name, target.base.tensor}
            for name in names:
                self._exact.setdefault(name, target)
            for core in {_core(name) for name in names}:
                # None: several tensors could be meant, so none is.
                known = self._cores.get(core, target)
                self._cores[core] = target if known is target else None

    def find(self, tensor: str) -> Target | None:
        return self._exact.get(tensor) or self._cores.get(_core(tensor))

    def stacks_of(self, module: str) -> list[Stack]:
        """The tensors of a module that hold several matrices each."""
        held = self._stacks.get(_core(module), {})
        return [Stack(f"{module}.{leaf}", tuple(slices)) for leaf, slices in held.items()]

    @property
    def targets(self) -> Iterator[Target]:
        return iter(dict.fromkeys(self._exact.values()))


def _core(name: str) -> str:
    return ".".join(without_wrappers(name.split(".")))


def land(part: Part, target: Target, *, fan_in_fan_out: bool, model_type: Any) -> Landing | str:
    """The part at its tensor; or why it does not fit, in words."""
    rows, columns = shape = target.base.shape
    if part.kind is Kind.BIAS:
        return Landing(part, target, False) if _is_vector(part, shape) else _differs(part, target)
    if part.kind is Kind.WHOLE:
        return Landing(part, target, False) if _covers(part.up.shape, target) else _differs(part, target)
    assert part.down is not None
    if part.rank > MOST_RANKS * max(shape):
        return f"a rank of {part.rank:,} is far beyond a matrix of {rows} x {columns}"
    inputs, outputs = part.down.shape[1], part.up.shape[0]
    if part.kind is Kind.EMBEDDING:
        fits = outputs == columns and inputs >= rows
        return Landing(part, target, True) if fits else _differs(part, target)
    straight, turned = (outputs, inputs) == shape, (inputs, outputs) == shape
    if not (straight or turned):
        return _differs(part, target)
    if part.slot is not None and straight and turned:
        return Landing(part, target, model_type in _INPUTS_FIRST)
    if straight and turned:
        is_head = part.module.rsplit(".", 1)[-1] == "lm_head"
        return Landing(part, target, not is_head and (fan_in_fan_out or str(model_type) in _CONV1D))
    return Landing(part, target, turned)


def _is_vector(part: Part, shape: tuple[int, int]) -> bool:
    return part.up.shape == (shape[1],) and shape[0] == 1


def _covers(shape: tuple[int, ...], target: Target) -> bool:
    """As the tensor's own shape; a vocabulary that grew may have more rows, which only the finetune has."""
    if len(target.shape) < 2 or len(shape) < 2:
        return tuple(shape) == tuple(target.shape)
    return shape[1:] == tuple(target.shape)[1:] and shape[0] >= target.shape[0]


def _differs(part: Part, target: Target) -> str:
    parts = [part.up.shape] if part.down is None else [part.up.shape, part.down.shape]
    ours = " by ".join(" x ".join(map(str, shape)) or "a number" for shape in parts)
    return f"{ours} does not fit {' x '.join(map(str, target.shape))}"
