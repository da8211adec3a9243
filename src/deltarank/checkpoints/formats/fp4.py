"""Floats of four bits (e2m1), two to a byte, with a scale for each 16 or 32 of a row: NVFP4 and MXFP4."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deltarank.checkpoints.formats.decoded_source import Parts
from deltarank.checkpoints.formats.lookup_tables import looked_up_pairs, pairs_of, scaled
from deltarank.checkpoints.formats.safetensors_header import TensorInfo
from deltarank.checkpoints.formats.scaled import factors
from deltarank.checkpoints.formats.storage import Storage

MXFP4 = Storage("MXFP4 (32 to a scale)", 0.114)
NVFP4 = Storage("NVFP4 (16 to a scale)", 0.0945)

_HALF = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_VALUES = torch.tensor([*_HALF, *(-value for value in _HALF)])
PAIRS = pairs_of(_VALUES)


@dataclass(frozen=True)
class Fp4:
    """fp4 * scale * whole, or / whole where `divides` (compressed-tensors): `whole` is one number for the matrix."""

    codes: TensorInfo
    scales: TensorInfo
    shape: tuple[int, ...]
    storage: Storage
    whole: TensorInfo | None = None
    divides: bool = False

    @property
    def parts(self) -> Sequence[TensorInfo]:
        return tuple(part for part in (self.codes, self.scales, self.whole) if part is not None)

    def decode(self, parts: Parts, first: int, last: int) -> Tensor:
        columns = self.shape[-1]
        scales = factors(parts.rows(self.scales, self.scales.shape[-1], first, last))
        if self.whole is not None:
            whole = parts.whole(self.whole).to(torch.float32).view(-1)
            scales = scales / whole if self.divides else scales * whole
        return _scaled(parts.rows(self.codes, columns // 2, first, last), scales)


@dataclass(frozen=True)
class Fp4Experts:
    """gpt-oss: blocks (experts, outputs, inputs / 32, 16) and scales (experts, outputs, inputs / 32), seen as the
    plain checkpoint has them, (experts, inputs, outputs)."""

    codes: TensorInfo
    scales: TensorInfo
    shape: tuple[int, int, int]
    storage: Storage = MXFP4

    @property
    def parts(self) -> Sequence[TensorInfo]:
        return (self.codes, self.scales)

    def decode(self, parts: Parts, first: int, last: int) -> Tensor:
        """Rows are inputs: those of one expert after those of another."""
        inputs = self.shape[1]
        found = []
        while first < last:
            expert, begin = divmod(first, inputs)
            end = min(inputs, begin + last - first)
            found.append(self._of_one(parts, expert, begin, end))
            first += end - begin
        return torch.cat(found)

    def _of_one(self, parts: Parts, expert: int, first: int, last: int) -> Tensor:
        experts, inputs, outputs = self.shape
        blocks = slice(first // 32, -(-last // 32))
        codes = parts.slab(self.codes, expert, experts).view(outputs, inputs // 32, 16)[:, blocks].flatten(1)
        scales = parts.slab(self.scales, expert, experts).view(outputs, inputs // 32)[:, blocks]
        skip = first - 32 * blocks.start
        return _scaled(codes, factors(scales.contiguous())).T[skip : skip + last - first]


def _scaled(codes: Tensor, scales: Tensor) -> Tensor:
    values = looked_up_pairs(PAIRS, codes)
    return scaled(values, scales, values.shape[1] // scales.shape[1])
