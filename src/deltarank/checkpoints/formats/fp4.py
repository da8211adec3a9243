"""4-bit floats (e2m1), two to a byte, with a scale for each 16 or 32 numbers of a row: NVFP4 and MXFP4."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deltarank.checkpoints.formats.decoded_source import Decoder, PartReader
from deltarank.checkpoints.formats.lookup_tables import lookup_pairs, multiply_groups_, pair_table
from deltarank.checkpoints.formats.safetensors_header import TensorInfo
from deltarank.checkpoints.formats.scaled import float_scales
from deltarank.checkpoints.formats.storage import StorageFormat

MXFP4 = StorageFormat("MXFP4 (32 to a scale)", 0.114)
NVFP4 = StorageFormat("NVFP4 (16 to a scale)", 0.0945)

_POSITIVE = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_PAIR_TABLE = pair_table(torch.tensor([*_POSITIVE, *(-value for value in _POSITIVE)]))


@dataclass(frozen=True)
class Fp4Decoder(Decoder):
    """fp4 * scale * global scale, or / global scale where `divides` (compressed-tensors)."""

    codes: TensorInfo
    scales: TensorInfo
    shape: tuple[int, ...]
    storage: StorageFormat
    global_scale: TensorInfo | None = None
    divides: bool = False

    def decode(self, parts: PartReader, first: int, last: int) -> Tensor:
        scales = float_scales(parts.rows(self.scales, self.scales.shape[-1], first, last))
        if self.global_scale is not None:
            global_scale = parts.whole(self.global_scale).to(torch.float32).view(-1)
            scales = scales / global_scale if self.divides else scales * global_scale
        return _decode(parts.rows(self.codes, self.shape[-1] // 2, first, last), scales)


@dataclass(frozen=True)
class Fp4ExpertsDecoder(Decoder):
    """gpt-oss: blocks (experts, outputs, inputs / 32, 16) and scales (experts, outputs, inputs / 32), decoded to the
    shape of the plain checkpoint, (experts, inputs, outputs)."""

    codes: TensorInfo
    scales: TensorInfo
    shape: tuple[int, int, int]
    storage: StorageFormat = MXFP4

    def decode(self, parts: PartReader, first: int, last: int) -> Tensor:
        """Rows are inputs; those of one expert follow those of another."""
        inputs = self.shape[1]
        decoded = []
        while first < last:
            expert, begin = divmod(first, inputs)
            end = min(inputs, begin + last - first)
            decoded.append(self._decode_expert(parts, expert, begin, end))
            first += end - begin
        return torch.cat(decoded)

    def _decode_expert(self, parts: PartReader, expert: int, first: int, last: int) -> Tensor:
        experts, inputs, outputs = self.shape
        blocks = slice(first // 32, -(-last // 32))
        codes = parts.slab(self.codes, expert, experts).view(outputs, inputs // 32, 16)[:, blocks].flatten(1)
        scales = parts.slab(self.scales, expert, experts).view(outputs, inputs // 32)[:, blocks]
        skip = first - 32 * blocks.start
        return _decode(codes, float_scales(scales.contiguous())).T[skip : skip + last - first]


def _decode(codes: Tensor, scales: Tensor) -> Tensor:
    values = lookup_pairs(_PAIR_TABLE, codes)
    return multiply_groups_(values, scales, values.shape[1] // scales.shape[1])
