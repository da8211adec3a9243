"""The numbers of a model, made tensor by tensor when somebody asks for them.

A candidate is a checkpoint and some edits of it. Nothing is held: a tensor is read, edited in float32 and handed over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import EllipsisType

import torch
from torch import Tensor

from deltarank.checkpoints import FLOAT_DTYPES, Checkpoint, Piece, TensorInfo

_OTHERS = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
}
_DTYPES = {**FLOAT_DTYPES, **_OTHERS}

Change = Callable[[Tensor], Tensor]
"""Takes a matrix in float32 and gives what stands in its place; it may write into what it was given."""


@dataclass(frozen=True)
class Edit:
    """A change of one piece of a tensor: a whole matrix, or an expert's slice of a stack.

    rounded_to       the result is rounded to this type: what a file of that type would hold
    """

    piece: Piece
    change: Change
    rounded_to: torch.dtype | None = None


@dataclass(frozen=True)
class LazyTensor:
    """One tensor that is made when it is indexed, as safetensors' slices are."""

    weights: Weights
    name: str

    def __getitem__(self, _: EllipsisType) -> Tensor:
        return self.weights.tensor(self.name)


@dataclass(frozen=True)
class Weights(Mapping[str, LazyTensor]):
    """A checkpoint's tensors by their names in its files, some of them edited.

    device           where edits are computed and tensors are handed over
    """

    checkpoint: Checkpoint = field(repr=False)
    edits: Mapping[str, Sequence[Edit]] = field(default_factory=dict, repr=False)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @classmethod
    def of(cls, checkpoint: Checkpoint, edits: Sequence[Edit], device: torch.device) -> Weights:
        """Edits sorted to their tensors."""
        by_tensor: dict[str, list[Edit]] = {}
        for edit in edits:
            by_tensor.setdefault(edit.piece.tensor, []).append(edit)
        return cls(checkpoint, by_tensor, device)

    def __getitem__(self, name: str) -> LazyTensor:
        if name not in self.checkpoint.tensors:
            raise KeyError(name)
        return LazyTensor(self, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.checkpoint.tensors)

    def __len__(self) -> int:
        return len(self.checkpoint.tensors)

    def tensor(self, name: str) -> Tensor:
        """As stored, or in float32 where it was edited.

        Raises:
            CheckpointError: (slug "unreadable") the file became shorter, or cannot be read.
        """
        info = self.checkpoint.tensors[name]
        stored = _read(self.checkpoint, info).to(self.device)
        edits = self.edits.get(name, ())
        if not edits:
            return stored
        flat = stored.float().view(-1)
        for edit in edits:
            skip = (edit.piece.start - info.start) // edit.piece.dtype.itemsize
            place = flat[skip : skip + edit.piece.entries]
            made = edit.change(place.view(edit.piece.shape))
            place.copy_(_rounded(made, edit.rounded_to).reshape(-1))
        return flat.view(info.shape)


def read_piece(piece: Piece, device: torch.device) -> Tensor:
    """A matrix in float32, (rows, columns)."""
    raw = torch.empty(piece.nbytes, dtype=torch.uint8)
    piece.source.read_into(piece.file, piece.start, raw.numpy().data)
    return raw.view(piece.dtype).view(piece.shape).to(device).float()


def _rounded(made: Tensor, dtype: torch.dtype | None) -> Tensor:
    return made if dtype is None else made.to(dtype)


def _read(checkpoint: Checkpoint, info: TensorInfo) -> Tensor:
    """Whole, as stored."""
    raw = torch.empty(info.nbytes, dtype=torch.uint8)
    if info.nbytes:
        checkpoint.source.read_into(info.file, info.start, raw.numpy().data)
    return raw.view(_DTYPES[info.dtype]).view(info.shape)


def strange_dtypes(checkpoint: Checkpoint) -> dict[str, str]:
    """The matrices whose stored type holds no plain numbers, and that type in the format's words."""
    return {
        name: info.dtype
        for name, info in checkpoint.tensors.items()
        if info.dtype not in _DTYPES
        or (info.dtype not in FLOAT_DTYPES and len(info.shape) > 1 and name.endswith("weight"))
    }
