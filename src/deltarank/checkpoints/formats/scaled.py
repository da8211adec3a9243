"""Codes of one byte, times a scale: FP8 and INT8, by tensor, by row, by column or by block.

The scale of a block covers `block` codes; at the right and lower edge blocks may be ragged, so the side of a block
cannot be told from the sides of the two tensors (300 rows and 3 scales are blocks of 128, not of 100): it has to be
known, from `weight_block_size` of config.json.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deltarank.checkpoints.formats.decoded_source import Parts
from deltarank.checkpoints.formats.lookup_tables import looked_up, of_bytes, scaled, shifted
from deltarank.checkpoints.formats.safetensors_header import TensorInfo
from deltarank.checkpoints.formats.storage import Storage

FP8 = {
    "F8_E4M3": ("e4m3", 0.0265),
    "F8_E4M3FNUZ": ("e4m3fnuz", 0.0265),
    "F8_E5M2": ("e5m2", 0.0531),
    "F8_E5M2FNUZ": ("e5m2fnuz", 0.0531),
}
"""The format's words for FP8: its short name, and its error (of 2 or 3 bits of mantissa, whatever the scale)."""


@dataclass(frozen=True)
class Grid:
    """How scales lie over codes: `per_stack` of them, of `rows` x `columns`, for each matrix of a stack.

    block            codes (rows, columns) that one of them covers
    stacked          every matrix of a stack has its own
    """

    rows: int
    columns: int
    block: tuple[int, int]
    stacked: bool

    @classmethod
    def of(cls, codes: Sequence[int], scales: Sequence[int], block: tuple[int, int] | None) -> Grid | None:
        """The grid of scales of this shape over codes of that shape; None if they do not fit each other."""
        *lead, rows, columns = (1, *codes) if len(codes) < 2 else codes
        entries = 1
        for side in scales:
            entries *= side
        if entries == 1:
            return cls(1, 1, (rows, columns), stacked=False)
        if list(scales) == lead:
            return cls(1, 1, (rows, columns), stacked=True)
        if len(scales) == 1 and not lead and scales[0] == rows:
            return cls(rows, 1, (1, columns), stacked=False)
        if len(scales) < 2 or list(scales[:-2]) != lead:
            return None
        sides = tuple(_side(n, s, b) for n, s, b in zip((rows, columns), scales[-2:], block or (0, 0), strict=True))
        return None if 0 in sides else cls(scales[-2], scales[-1], (sides[0], sides[1]), stacked=bool(lead))


def _side(codes: int, scales: int, block: int) -> int:
    """Codes under one scale along a side; 0 if that cannot be."""
    if scales == 1:
        return max(codes, 1)
    if scales == codes:
        return 1
    return block if block > 0 and -(-codes // block) == scales else 0


@dataclass(frozen=True)
class Scaled:
    """(code - zero) * scale * factor; zeros lie as scales do."""

    codes: TensorInfo
    scales: TensorInfo | None
    grid: Grid
    storage: Storage
    zeros: TensorInfo | None = None
    factor: float = 1.0

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape

    @property
    def parts(self) -> Sequence[TensorInfo]:
        return tuple(part for part in (self.codes, self.scales, self.zeros) if part is not None)

    def decode(self, parts: Parts, first: int, last: int) -> Tensor:
        codes = parts.rows(self.codes, self.shape[-1], first, last)
        is_fp8 = codes.dtype.is_floating_point
        values = looked_up(of_bytes(codes.dtype), codes.view(torch.uint8)) if is_fp8 else codes.to(torch.float32)
        if self.scales is not None:
            lines = self._lines(first, last)
            if self.zeros is not None:
                zeros = self._grid(parts, self.zeros, lines).to(torch.float32)
                values = shifted(values, zeros, self.grid.block[1])
            values = scaled(values, factors(self._grid(parts, self.scales, lines)), self.grid.block[1])
        return values * self.factor if self.factor != 1.0 else values

    def _grid(self, parts: Parts, info: TensorInfo, lines: Tensor) -> Tensor:
        """A line of the grid for each row."""
        first = int(lines[0])
        return parts.rows(info, self.grid.columns, first, int(lines[-1]) + 1)[lines - first]

    def _lines(self, first: int, last: int) -> Tensor:
        """The line of the grid that each row lies under."""
        rows = self.shape[-2] if len(self.shape) > 1 else 1
        which = torch.arange(first, last)
        lines = which % rows // self.grid.block[0]
        return lines + which // rows * self.grid.rows if self.grid.stacked else lines


def factors(scales: Tensor) -> Tensor:
    """Scales in float32; those of eight bits are exponents."""
    return exponents(scales) if scales.dtype == torch.uint8 else scales.to(torch.float32)


def exponents(codes: Tensor) -> Tensor:
    """E8M0 of the Open Compute Project's microscaling formats (2023): 2^(b - 127), and 255 is no number."""
    ones = torch.ones(codes.shape, dtype=torch.float64)
    powers = torch.ldexp(ones, codes.to(torch.int32) - 127).to(torch.float32)
    return powers.masked_fill_(codes == 255, float("nan"))
