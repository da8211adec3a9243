"""Where an adapter's parts land: which tensor of the checkpoints each one changes, and whether it fits there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from deltarank.adapters.read import AdapterPart, PartKind
from deltarank.checkpoints import Pair, SummedTensor, parse_expert_name, strip_wrappers

Target = SummedTensor | Pair

MOST_RANKS = 4
"""Times the longer side: factors of a higher rank would take more memory than the tensor that they are for."""

_INPUTS_FIRST = frozenset({"gpt_oss", "aria", "aria_text", "openai_privacy_filter"})
"""Model types whose fused experts are stored as (experts, inputs, outputs)."""

_CONV1D = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})
"""Model types whose linear layers store inputs x outputs (transformers' Conv1D), whatever the adapter says."""


@dataclass(frozen=True)
class Placement:
    """A part and the tensor that it changes.

    transposed       the tensor is stored as inputs x outputs: what is added is (B A)'
    """

    part: AdapterPart
    target: Target
    transposed: bool


@dataclass(frozen=True)
class StackedMatrices:
    """Matrices in one tensor, by the name that an adapter uses for it."""

    name: str
    slices: tuple[Target, ...]


@dataclass(frozen=True)
class SeparateExperts:
    """Single experts in files, as the tensor that transformers 5 makes of them and that PEFT puts LoRAs on.

    parts       of each expert, from its first row on: gate and up, or down
    """

    name: str
    parts: tuple[tuple[Target, ...], ...]

    @property
    def shape(self) -> tuple[int, int]:
        """Of an expert."""
        first = self.parts[0]
        return sum(target.base.shape[0] for target in first), first[0].base.shape[1]

    @property
    def is_even(self) -> bool:
        return len({tuple(target.base.shape for target in parts) for parts in self.parts}) == 1


_FUSED = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}


class TensorIndex:
    """Finds tensors by the names that adapters use: as they are, or less what a wrapper put before them."""

    def __init__(self, targets: Iterable[Target]) -> None:
        self._exact: dict[str, Target] = {}
        self._cores: dict[str, Target | None] = {}
        self._stacks: dict[str, dict[str, list[Target]]] = {}
        self._singles: dict[str, dict[tuple[int, str], Target]] = {}
        for target in targets:
            if is_slice := target.name.startswith(f"{target.finetune.tensor}["):
                name = target.name.rpartition("[")[0]
                stacks = self._stacks.setdefault(_core(name.rpartition(".")[0]), {})
                stacks.setdefault(name.rpartition(".")[2], []).append(target)
            names = {target.name} if is_slice else {target.name, target.base.tensor}
            for holder, number, part in filter(None, map(parse_expert_name, names)):
                self._singles.setdefault(_core(holder), {})[number, part] = target
            for name in names:
                self._exact.setdefault(name, target)
            for core in {_core(name) for name in names}:
                # None: several tensors could be meant, so none is.
                known = self._cores.get(core, target)
                self._cores[core] = target if known is target else None

    def find(self, tensor: str) -> Target | None:
        return self._exact.get(tensor) or self._cores.get(_core(tensor))

    def stacks_of(self, module: str) -> list[StackedMatrices]:
        """The tensors of a module that hold several matrices each."""
        held = self._stacks.get(_core(module), {})
        return [StackedMatrices(f"{module}.{leaf}", tuple(slices)) for leaf, slices in held.items()]

    def fused_of(self, module: str) -> list[SeparateExperts]:
        """What transformers makes of a module whose experts lie in files one by one; only what is all there."""
        held = self._singles.get(_core(module), {})
        experts = 1 + max((number for number, _ in held), default=-1)
        made = []
        for leaf, words in _FUSED.items():
            places = [[(number, word) for word in words] for number in range(experts if len(held) >= experts else 0)]
            if places and all(place in held for each in places for place in each):
                made.append(
                    SeparateExperts(f"{module}.{leaf}", tuple(tuple(held[place] for place in each) for each in places))
                )
        return [each for each in made if each.is_even]

    @property
    def targets(self) -> Iterator[Target]:
        return iter(dict.fromkeys(self._exact.values()))


def _core(name: str) -> str:
    return ".".join(strip_wrappers(name.split(".")))


def place_part(part: AdapterPart, target: Target, *, fan_in_fan_out: bool, model_type: Any) -> Placement | str:
    """The part at its tensor; or why it does not fit, in words."""
    rows, columns = shape = target.base.shape
    if part.kind is PartKind.BIAS:
        return Placement(part, target, False) if _is_vector(part, shape) else _differs(part, target)
    if part.kind is PartKind.WHOLE:
        return Placement(part, target, False) if _covers(part.up.shape, target) else _differs(part, target)
    assert part.down is not None
    if part.rank > MOST_RANKS * max(shape):
        return f"a rank of {part.rank:,} is far beyond a matrix of {rows} x {columns}"
    inputs, outputs = part.down.shape[1], part.outputs
    if part.kind is PartKind.EMBEDDING:
        fits = outputs == columns and inputs >= rows
        return Placement(part, target, True) if fits else _differs(part, target)
    straight, turned = (outputs, inputs) == shape, (inputs, outputs) == shape
    if not (straight or turned):
        return _differs(part, target)
    if part.slot is not None and straight and turned:
        return Placement(part, target, model_type in _INPUTS_FIRST)
    if straight and turned:
        is_head = part.module.rsplit(".", 1)[-1] == "lm_head"
        return Placement(part, target, not is_head and (fan_in_fan_out or str(model_type) in _CONV1D))
    return Placement(part, target, turned)


def _is_vector(part: AdapterPart, shape: tuple[int, int]) -> bool:
    return part.up.shape == (shape[1],) and shape[0] == 1


def _covers(shape: tuple[int, ...], target: Target) -> bool:
    """As the tensor's own shape; a vocabulary that grew may have more rows, which only the finetune has."""
    if len(target.shape) < 2 or len(shape) < 2:
        return tuple(shape) == tuple(target.shape)
    return shape[1:] == tuple(target.shape)[1:] and shape[0] >= target.shape[0]


def _differs(part: AdapterPart, target: Target) -> str:
    parts = [part.up.shape] if part.down is None else [part.up.shape, part.down.shape]
    ours = " by ".join(" x ".join(map(str, shape)) or "a number" for shape in parts)
    return f"{ours} does not fit {' x '.join(map(str, target.shape))}"
