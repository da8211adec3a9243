"""Where each matrix of a checkpoint is in the model that transformers makes of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from deltarank.architectures import Conversion, LoadedTensors, load_tensors
from deltarank.checkpoints import Checkpoint, Pair, TensorInfo, parse_expert_name
from deltarank.models import ModelSkeleton, WeightSlot

_STACKING = "MergeModulelist"
_KEEPS_SIDES = frozenset({_STACKING, "Concatenate", "Chunk", "SplitModulelist"})
"""Operations of transformers that put matrices on top of each other or cut them apart: the inputs stay the same."""


@dataclass(frozen=True)
class MatrixPlaces:
    """The parameters of a model that the matrices of its checkpoint become."""

    checkpoint: Checkpoint
    skeleton: ModelSkeleton

    def find(self, pairs: Iterable[Pair]) -> dict[str, WeightSlot]:
        """The place of the finetune's side of each pair, by the name of the pair; without those that have none."""
        found = {pair.name: self._place(pair) for pair in pairs}
        return {name: slot for name, slot in found.items() if slot is not None}

    def input_entries(self, slot: WeightSlot, shape: tuple[int, int]) -> int:
        """How many numbers the Gram matrix of the inputs has, for a matrix of this shape."""
        module = self.skeleton.meta_model.get_submodule(slot.parameter.rpartition(".")[0])
        rows, columns = shape
        if type(module).__name__ == "Embedding":
            return rows + columns**2  # a tied one is the output head, too
        is_transposed = type(module).__name__ == "Conv1D" or getattr(module, "is_transposed", False)
        return int((rows if is_transposed else columns) ** 2)

    def _place(self, pair: Pair) -> WeightSlot | None:
        tensor = self._tensor_of(pair)
        conversion = None if tensor is None else self._loaded.by_source.get(tensor.name)
        if tensor is None or conversion is None or not set(conversion.operations) <= _KEEPS_SIDES:
            return None
        parameter, shape = next(iter(conversion.parameters.items()))
        if len(shape) == 2:
            return WeightSlot(parameter)
        index = _index(tensor, pair, conversion)
        return None if len(shape) != 3 or index is None else WeightSlot(parameter, index)

    def _tensor_of(self, pair: Pair) -> TensorInfo | None:
        """The stored tensor that holds the piece; None for one that is put together from several."""
        piece = pair.finetune
        info = self._by_start.get((piece.file, piece.start)) or self.checkpoint.tensors.get(piece.tensor)
        if info is None or info.file != piece.file:
            return None
        return info if info.start <= piece.start and piece.start + piece.nbytes <= info.start + info.nbytes else None

    @cached_property
    def _by_start(self) -> Mapping[tuple[str, int], TensorInfo]:
        return {(info.file, info.start): info for info in self.checkpoint.tensors.values()}

    @cached_property
    def _loaded(self) -> LoadedTensors:
        shapes: dict[str, Any] = {name: info.shape for name, info in self.checkpoint.tensors.items()}
        return load_tensors(self.skeleton.meta_model, shapes)


def _index(tensor: TensorInfo, pair: Pair, conversion: Conversion) -> int | None:
    """The expert that the matrix belongs to."""
    if _STACKING in conversion.operations:
        expert = parse_expert_name(tensor.name)
        return expert[1] if expert else None
    if conversion.is_renaming and len(tensor.shape) == 3:
        per_expert = tensor.nbytes // tensor.shape[0]
        return (pair.finetune.start - tensor.start) // per_expert
    return None
