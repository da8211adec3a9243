"""Which tensor of the checkpoints each part of an adapter changes, and whether the part fits it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from deltarank.adapters.parts import AdapterPart, PartKind, transposed_reason
from deltarank.adapters.reading import ReaderNames
from deltarank.checkpoints import Pair, SummedTensor, dimensions, parse_expert_name
from deltarank.results import Outcome
from deltarank.servers import is_transposed
from deltarank.tensor_names import INNER_WRAPPERS, strip_wrappers

Target = SummedTensor | Pair

MAX_RANK_TO_SIDE = 4
"""Factors whose rank is larger than the longer side by more than this would take more memory than their tensor."""

_INPUTS_FIRST = frozenset({"gpt_oss", "aria", "aria_text", "openai_privacy_filter"})
"""Model types whose fused experts are stored as (experts, inputs, outputs)."""


@dataclass(frozen=True)
class Placement:
    """A part and the tensor that it changes.

    is_transposed    the tensor is stored as inputs x outputs: what is added is (B A)'
    """

    part: AdapterPart
    target: Target
    is_transposed: bool


@dataclass(frozen=True)
class StackedMatrices:
    """Several matrices in one tensor, under the name that an adapter uses for the tensor."""

    name: str
    slices: tuple[Target, ...]


@dataclass(frozen=True)
class SeparateExperts:
    """Experts with tensors of their own, which transformers 5 fuses into one tensor that PEFT puts a LoRA on.

    name        of the fused tensor
    experts     the tensors that each expert's slice of it is made of, in the order of their rows: gate and up, or down
    """

    name: str
    experts: tuple[tuple[Target, ...], ...]

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of one expert's slice."""
        first = self.experts[0]
        return sum(target.base.shape[0] for target in first), first[0].base.shape[1]

    @property
    def have_equal_shapes(self) -> bool:
        return len({tuple(target.base.shape for target in tensors) for tensors in self.experts}) == 1


FUSED_FROM = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}


class TensorIndex:
    """Finds what both checkpoints have by the name that the reader of an adapter has for it in the base."""

    def __init__(self, targets: Iterable[Target], names: ReaderNames) -> None:
        self.names = names
        self._by_name: dict[str, Target] = {}
        self._by_core_name: dict[str, Target | None] = {}
        self._stacked: dict[str, dict[str, list[Target]]] = {}
        self._experts: dict[str, dict[tuple[int, str], Target]] = {}
        for target in targets:
            if is_slice := target.name.startswith(f"{target.finetune.tensor}["):
                name, _, number = target.name.rpartition("[")
                stacked = self._stacked.setdefault(core_name(name.rpartition(".")[0]), {})
                stacked.setdefault(name.rpartition(".")[2], []).append(target)
            base_name = f"{target.base.tensor}[{number}" if is_slice else target.base.tensor
            is_tied = isinstance(target, SummedTensor) and target.outcome is Outcome.TIED
            for module, index, weight in filter(None, map(parse_expert_name, {target.name, base_name})):
                self._experts.setdefault(core_name(module), {})[index, weight] = target
            self._by_name.setdefault(target.name if is_tied else base_name, target)
            for core in {core_name(target.name), core_name(base_name)}:
                # None: the name is ambiguous, so it finds nothing.
                first = self._by_core_name.get(core, target)
                self._by_core_name[core] = target if first is target else None

    def find(self, tensor: str) -> Target | None:
        """The target of a tensor that the reader calls `tensor`."""
        if tensor.endswith("]") and tensor in self._by_name:  # an expert's part of a tensor, which only files have
            return self._by_name[tensor]
        name = self.names.in_files(tensor)
        if name is not None and name in self._by_name:
            return self._by_name[name]
        expert = parse_expert_name(tensor)
        return self._experts.get(core_name(expert[0]), {}).get(expert[1:]) if expert else None

    def find_tied(self, tensor: str) -> SummedTensor | None:
        """The head of the finetune that is compared with the embedding of the base, which has no head of its own."""
        target = self._by_name.get(tensor)
        return target if isinstance(target, SummedTensor) and target.outcome is Outcome.TIED else None

    def find_similar(self, tensor: str) -> Target | None:
        """The only target of this name but for the prefixes of wrappers. No reader of adapters looks for it."""
        return self._by_core_name.get(core_name(tensor))

    def stacked_in(self, module: str) -> list[StackedMatrices]:
        """The tensors of a module that hold several matrices each."""
        stacked = self._stacked.get(core_name(module), {})
        return [StackedMatrices(f"{module}.{leaf}", tuple(slices)) for leaf, slices in stacked.items()]

    def fused_in(self, module: str) -> list[SeparateExperts]:
        """What transformers fuses of a module whose experts are separate in the files, where none is missing."""
        tensors = self._experts.get(core_name(module), {})
        number = 1 + max((index for index, _ in tensors), default=-1)
        if len(tensors) < number:
            return []
        fused = []
        for leaf, weights in FUSED_FROM.items():
            keys = [[(index, weight) for weight in weights] for index in range(number)]
            if keys and all(key in tensors for expert in keys for key in expert):
                experts = tuple(tuple(tensors[key] for key in expert) for expert in keys)
                fused.append(SeparateExperts(f"{module}.{leaf}", experts))
        return [each for each in fused if each.have_equal_shapes]

    @property
    def targets(self) -> Iterator[Target]:
        return iter(dict.fromkeys(self._by_name.values()))


def core_name(name: str) -> str:
    return ".".join(part for part in strip_wrappers(name.split(".")) if part not in INNER_WRAPPERS)


def place_part(part: AdapterPart, target: Target, config: Mapping[str, Any]) -> Placement | str:
    """The part placed on its tensor; or the reason why it does not fit.

    `fan_in_fan_out` is not asked: PEFT goes by the type of the layer, and servers do not read it.

    Args:
        config: config.json of the base.
    """
    rows, columns = shape = target.base.shape
    if part.kind is PartKind.BIAS:
        is_bias = part.up.shape == (columns,) and rows == 1
        return Placement(part, target, False) if is_bias else _does_not_fit(part, target)
    if part.kind is PartKind.WHOLE:
        return Placement(part, target, False) if _replaces(part.up.shape, target) else _does_not_fit(part, target)
    assert part.down is not None
    if part.rank > MAX_RANK_TO_SIDE * max(shape):
        return f"its rank of {part.rank:,} is far too high for a matrix of {rows} x {columns}"
    if part.kind is PartKind.EMBEDDING:
        fits = part.outputs == columns and part.inputs >= rows
        return Placement(part, target, True) if fits else _does_not_fit(part, target)
    kernel = target.shape[2:] if isinstance(target, SummedTensor) else ()
    if part.down.shape[2:] != kernel:
        return _does_not_fit(part, target)
    fits, fits_transposed = (part.outputs, part.inputs) == shape, (part.inputs, part.outputs) == shape and not kernel
    if not (fits or fits_transposed):
        return _does_not_fit(part, target)
    is_known_module = "model_type" in config and not part.is_parameter
    if not is_known_module and not (fits and fits_transposed):
        return Placement(part, target, fits_transposed)
    if part.expert is not None:
        return Placement(part, target, config.get("model_type") in _INPUTS_FIRST)
    transposed = is_transposed(target.base.tensor, config)
    return (
        Placement(part, target, transposed)
        if (fits_transposed if transposed else fits)
        else _does_not_fit(part, target)
    )


def _replaces(shape: tuple[int, ...], target: Target) -> bool:
    """Whether the shape is the tensor's own; a vocabulary that grew may have more rows, which only the finetune has."""
    if len(target.shape) < 2 or len(shape) < 2:
        return tuple(shape) == tuple(target.shape)
    return shape[1:] == tuple(target.shape)[1:] and shape[0] >= target.shape[0]


def _does_not_fit(part: AdapterPart, target: Target) -> str:
    if is_turned_around(part, target):
        assert part.down is not None
        return transposed_reason("A and B", part.down.shape, part.up.shape)
    shapes = [part.up.shape] if part.down is None else [part.up.shape, part.down.shape]
    return f"{' by '.join(map(dimensions, shapes))} does not fit {dimensions(target.shape)}"


def is_turned_around(part: AdapterPart, target: Target) -> bool:
    """Whether A and B of a square matrix are both stored transposed: they agree with each other, at too high a rank."""
    if part.down is None or part.is_turned or len(part.down.shape) != 2:
        return False
    rows, columns = target.base.shape
    return rows == columns == part.down.shape[0] == part.up.shape[1] and part.down.shape[1] == part.up.shape[0] < rows
