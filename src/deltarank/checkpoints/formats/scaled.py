"""One code per byte, times a scale: FP8 and INT8, with scales by tensor, row, column or block.

Blocks at the right and lower edge may be partial, so the size of a block does not follow from the shapes of the two
tensors (300 rows and 3 scales are blocks of 128, not of 100): it is read from `weight_block_size` of config.json.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deltarank.checkpoints.formats.decoded_source import Decoder, PartReader
from deltarank.checkpoints.formats.lookup_tables import byte_table, lookup, multiply_groups_, subtract_groups_
from deltarank.checkpoints.formats.safetensors_header import TensorInfo
from deltarank.checkpoints.formats.storage import StorageFormat


@dataclass(frozen=True)
class ScaleGrid:
    """How scales cover the codes: a grid of `rows` x `columns` scales.

    block            codes (rows, columns) that one scale covers
    stacked          every matrix of a stack has its own grid
    """

    rows: int
    columns: int
    block: tuple[int, int]
    stacked: bool

    @classmethod
    def match(cls, codes: Sequence[int], scales: Sequence[int], block: tuple[int, int] | None) -> ScaleGrid | None:
        """The grid of scales of this shape over codes of that shape; None if they do not match."""
        *stack, rows, columns = (1, *codes) if len(codes) < 2 else codes
        if math.prod(scales) == 1:
            return cls(1, 1, (rows, columns), stacked=False)
        if list(scales) == stack:
            return cls(1, 1, (rows, columns), stacked=True)
        if len(scales) == 1 and not stack and scales[0] == rows:
            return cls(rows, 1, (1, columns), stacked=False)
        if len(scales) < 2 or list(scales[:-2]) != stack:
            return None
        height, width = map(_block_side, (rows, columns), scales[-2:], block or (0, 0))
        return cls(scales[-2], scales[-1], (height, width), stacked=bool(stack)) if height and width else None


def _block_side(codes: int, scales: int, block: int) -> int:
    """Codes that one scale covers along a side; 0 if they do not match."""
    if scales == 1:
        return max(codes, 1)
    if scales == codes:
        return 1
    return block if block > 0 and -(-codes // block) == scales else 0


@dataclass(frozen=True)
class ScaledDecoder(Decoder):
    """(code - zero) * scale * factor; zero points have the shape of the scales."""

    codes: TensorInfo
    scales: TensorInfo | None
    shape: tuple[int, ...]
    grid: ScaleGrid
    storage: StorageFormat
    zeros: TensorInfo | None = None
    factor: float = 1.0

    def decode(self, parts: PartReader, first: int, last: int) -> Tensor:
        codes = parts.rows(self.codes, self.shape[-1], first, last)
        is_fp8 = codes.dtype.is_floating_point
        values = lookup(byte_table(codes.dtype), codes.view(torch.uint8)) if is_fp8 else codes.to(torch.float32)
        if self.scales is not None:
            grid_rows = self._grid_rows(first, last)
            if self.zeros is not None:
                zeros = self._read_grid(parts, self.zeros, grid_rows).to(torch.float32)
                values = subtract_groups_(values, zeros, self.grid.block[1])
            scales = float_scales(self._read_grid(parts, self.scales, grid_rows))
            values = multiply_groups_(values, scales, self.grid.block[1])
        return values * self.factor if self.factor != 1.0 else values

    def _read_grid(self, parts: PartReader, info: TensorInfo, grid_rows: Tensor) -> Tensor:
        first = int(grid_rows[0])
        return parts.rows(info, self.grid.columns, first, int(grid_rows[-1]) + 1)[grid_rows - first]

    def _grid_rows(self, first: int, last: int) -> Tensor:
        """The row of the grid that covers each row of codes."""
        rows = self.shape[-2] if len(self.shape) > 1 else 1
        row = torch.arange(first, last)
        grid_row = row % rows // self.grid.block[0]
        return grid_row + row // rows * self.grid.rows if self.grid.stacked else grid_row


def float_scales(scales: Tensor) -> Tensor:
    """Scales in float32; bytes are exponents."""
    return decode_e8m0(scales) if scales.dtype == torch.uint8 else scales.to(torch.float32)


def decode_e8m0(codes: Tensor) -> Tensor:
    """E8M0 of the Open Compute Project's microscaling formats (2023): 2^(b - 127), and 255 is NaN."""
    ones = torch.ones(codes.shape, dtype=torch.float64)
    powers = torch.ldexp(ones, codes.to(torch.int32) - 127).to(torch.float32)
    return powers.masked_fill_(codes == 255, float("nan"))
