"""What a pairing is made of: contiguous pieces of files, pairs of pieces, and the tensors that are left over."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from deltarank.checkpoints.formats.safetensors_header import TensorInfo
from deltarank.checkpoints.formats.storage import StorageFormat
from deltarank.checkpoints.source import Source
from deltarank.results import Outcome

FLOAT_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""The dtypes of plain weights, by their safetensors names."""

PLAIN_DTYPES = {
    **FLOAT_DTYPES,
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
}
"""The dtypes of all tensors that are stored number by number, buffers and masks among them."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A contiguous run of numbers in a file, viewed as a matrix.

    start          byte offset in the file
    shape          (rows, columns)
    storage        the quantised format that it is decoded from when read; None if it is plain
    stored_ratio   bytes in the file for each byte of `nbytes`
    """

    tensor: str
    file: str
    start: int
    dtype: torch.dtype
    shape: tuple[int, int]
    source: Source = field(repr=False, compare=False)
    storage: StorageFormat | None = None
    stored_ratio: float = 1.0

    @classmethod
    def from_info(cls, info: TensorInfo, source: Source, shape: tuple[int, int], *, skip: int = 0) -> Piece:
        """The part of a tensor that begins `skip` numbers after its first."""
        dtype = FLOAT_DTYPES[info.dtype]
        start = info.start + skip * dtype.itemsize
        return cls(info.name, info.file, start, dtype, shape, source, info.storage, info.stored_ratio)

    @property
    def entries(self) -> int:
        return self.shape[0] * self.shape[1]

    @property
    def nbytes(self) -> int:
        return self.entries * self.dtype.itemsize

    @property
    def stored_nbytes(self) -> int:
        """Bytes in the file; they are decoded to `nbytes`."""
        return round(self.nbytes * self.stored_ratio)

    @property
    def storage_name(self) -> str:
        """ "bfloat16", or the name of a quantised format."""
        return self.storage.name if self.storage else str(self.dtype).removeprefix("torch.")

    @property
    def rounding_error(self) -> float:
        """||W - Q(W)|| / ||W|| of a quantised format; 0 of a plain dtype."""
        return self.storage.rounding_error if self.storage else 0.0


def is_same_data(one: Piece, other: Piece) -> bool:
    """Whether the two are known to be the same plain bytes, without reading them."""
    return (
        one.storage is None
        and other.storage is None
        and (one.start, one.dtype, one.shape) == (other.start, other.dtype, other.shape)
        and one.source.identity(one.file) == other.source.identity(other.file)
    )


class _TwoPieces:
    """The base's piece and the finetune's."""

    __slots__ = ()
    base: Piece
    finetune: Piece

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """The pieces to read: one if both sides are known to be the same bytes."""
        return (self.base,) if self.base is self.finetune else (self.base, self.finetune)

    @property
    def nbytes(self) -> int:
        """Bytes to read from the files of both sides."""
        return sum(piece.stored_nbytes for piece in self.pieces)


@dataclass(frozen=True, slots=True)
class Pair(_TwoPieces):
    """A matrix to measure. `name` is the finetune's, with "[i]" for expert i of a fused tensor."""

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
    def dtype(self) -> str:
        """How it is stored: "bfloat16", or "bfloat16 -> float32" where base and finetune differ."""
        base, finetune = self.base.storage_name, self.finetune.storage_name
        return finetune if finetune == base else f"{base} -> {finetune}"


@dataclass(frozen=True, slots=True)
class SummedTensor(_TwoPieces):
    """A tensor of both sides that is not measured; only the size of its change is summed.

    `shape` is that of the part that both sides have.
    """

    name: str
    outcome: Outcome
    reason: str
    shape: tuple[int, ...]
    base: Piece
    finetune: Piece

    @property
    def entries(self) -> int:
        return math.prod(self.shape)
