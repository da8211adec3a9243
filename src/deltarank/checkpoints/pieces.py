"""What a pairing is made of: pieces of files, pairs of pieces, and what is left over."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from deltarank.checkpoints.formats.safetensors_header import TensorInfo
from deltarank.checkpoints.formats.storage import Storage
from deltarank.checkpoints.source import Source
from deltarank.results import Outcome, Skipped

FLOAT_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""The types that hold plain weights, by the format's words."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of numbers in a file, seen as rows x columns. `storage` is set where they are decoded when read."""

    tensor: str
    file: str
    start: int
    dtype: torch.dtype
    shape: tuple[int, int]
    source: Source = field(repr=False, compare=False)
    storage: Storage | None = None
    density: float = 1.0

    @classmethod
    def of(cls, info: TensorInfo, source: Source, shape: tuple[int, int], *, skip: int = 0) -> Piece:
        """The part of a tensor that begins `skip` numbers after its first."""
        dtype = FLOAT_DTYPES[info.dtype]
        return cls(
            info.name, info.file, info.start + skip * dtype.itemsize, dtype, shape, source, info.storage, info.density
        )

    @property
    def entries(self) -> int:
        return self.shape[0] * self.shape[1]

    @property
    def nbytes(self) -> int:
        return self.entries * self.dtype.itemsize

    @property
    def stored_nbytes(self) -> int:
        """Bytes on disk; `nbytes` is what they become."""
        return round(self.nbytes * self.density)

    @property
    def stored(self) -> str:
        """ "bfloat16", or the name of a quantised format."""
        return self.storage.name if self.storage else str(self.dtype).removeprefix("torch.")

    @property
    def error(self) -> float:
        """||W - Q(W)|| / ||W|| of a quantised format; 0 of a plain type."""
        return self.storage.error if self.storage else 0.0


def hold_the_same(one: Piece, other: Piece) -> bool:
    """Whether the two are the same plain bytes, known from what their files are and without reading them."""
    return (
        one.storage is None
        and other.storage is None
        and (one.start, one.dtype, one.shape) == (other.start, other.dtype, other.shape)
        and one.source.identity(one.file) == other.source.identity(other.file)
    )


@dataclass(frozen=True, slots=True)
class Pair:
    """One matrix to measure, by its name in the finetune ("[i]" for expert i of a fused tensor).

    dtype            how it is stored: "bfloat16", or "bfloat16 -> float32" (base -> finetune) where that differs
    """

    name: str
    layer: int | None
    module: str
    base: Piece
    finetune: Piece

    @property
    def shape(self) -> tuple[int, int]:
        return self.finetune.shape

    @property
    def entries(self) -> int:
        return self.finetune.entries

    @property
    def nbytes(self) -> int:
        """Bytes to read, of both sides."""
        return sum(piece.stored_nbytes for piece in self.pieces)

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """Those to read: one where both sides are known to hold the same bytes."""
        return (self.base,) if self.base is self.finetune else (self.base, self.finetune)

    @property
    def dtype(self) -> str:
        ours, theirs = self.finetune.stored, self.base.stored
        return ours if ours == theirs else f"{theirs} -> {ours}"


@dataclass(frozen=True, slots=True)
class SummedTensor:
    """Not measured, but both sides have it, so its change can be summed. `shape` is that of the part compared."""

    name: str
    outcome: Outcome
    reason: str
    shape: tuple[int, ...]
    base: Piece
    finetune: Piece

    @property
    def entries(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes to read, of both sides."""
        return sum(piece.stored_nbytes for piece in self.pieces)

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """Those to read: one where both sides are known to hold the same bytes."""
        return (self.base,) if self.base is self.finetune else (self.base, self.finetune)


@dataclass(frozen=True)
class Pairing:
    """The plan: what is measured, what is only summed, what is not read, and what the user should know."""

    pairs: tuple[Pair, ...]
    summed: tuple[SummedTensor, ...]
    skipped: tuple[Skipped, ...]
    notes: tuple[str, ...]
