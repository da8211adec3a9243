"""Integers of 1 to 8 bits, packed into 32-bit words, with a scale and perhaps a zero point per group of columns."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from deltarank.checkpoints.formats.decoded_source import Decoder, PartReader
from deltarank.checkpoints.formats.lookup_tables import multiply_groups_, subtract_groups_
from deltarank.checkpoints.formats.safetensors_header import TensorInfo
from deltarank.checkpoints.formats.storage import StorageFormat

WORD_BITS = 32
AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""AutoAWQ's order of eight 4-bit numbers in a word."""


def integer_error(bits: int, group: int, *, is_affine: bool = False) -> float:
    """The relative error of rounding normally distributed numbers to 2^bits even steps over each group's range.

    sqrt(step^2 / 12) with step = 2 max / (2^bits - 1), where max is the expected maximum of |w| in a group by extreme
    value theory; of w if the range goes from the smallest to the largest number (`is_affine`).
    """
    exceeded = 0.5614 if is_affine else 0.2807
    largest = NormalDist().inv_cdf(1 - exceeded / max(group, 2))
    return largest / (math.sqrt(3) * ((1 << bits) - 1))


def unpack(words: Tensor, bits: int, count: int) -> Tensor:
    """The first `count` numbers of each row of words (int32), lowest bits first, without padding."""
    if bits in (4, 8):
        octets = words.contiguous().view(torch.uint8)
        codes = octets if bits == 8 else torch.stack([octets & 15, octets >> 4], dim=-1).flatten(1)
        return codes[:, :count]
    mask = (1 << bits) - 1
    if WORD_BITS % bits == 0:
        shifts = torch.arange(0, WORD_BITS, bits, dtype=torch.int32)
        return (words.unsqueeze(-1) >> shifts & mask).flatten(1)[:, :count]
    wide = torch.nn.functional.pad(words.to(torch.int64) & 0xFFFFFFFF, (0, 1))
    position = torch.arange(count) * bits
    pairs = wide[:, position // WORD_BITS] | wide[:, position // WORD_BITS + 1] << WORD_BITS
    return pairs >> position % WORD_BITS & mask


def words_for(count: int, bits: int) -> int:
    """Words that hold so many numbers."""
    return -(-count * bits // WORD_BITS)


@dataclass(frozen=True)
class PackedDecoder(Decoder):
    """compressed-tensors' `pack-quantized`: rows of codes and rows of scales; zero points are packed down the columns.

    (code - 2^(bits - 1) - zero) * scale, with `group` columns to a scale. `group_index` (`g_idx`) holds the group of
    each column, if columns were sorted before they were grouped.
    """

    packed: TensorInfo
    scales: TensorInfo
    zeros: TensorInfo | None
    group_index: TensorInfo | None
    shape: tuple[int, ...]
    bits: int
    group: int
    storage: StorageFormat

    def decode(self, parts: PartReader, first: int, last: int) -> Tensor:
        columns, half = self.shape[-1], 1 << (self.bits - 1)
        words = parts.rows(self.packed, words_for(columns, self.bits), first, last)
        values = unpack(words, self.bits, columns).to(torch.float32).sub_(half)
        if self.scales.entries == 1:
            return values.mul_(parts.whole(self.scales).to(torch.float32).view(1, 1))
        groups = self.scales.shape[-1]
        group_index = None if self.group_index is None else parts.whole(self.group_index)
        if self.zeros is not None:
            zeros = self._zeros(parts, groups, first, last).to(torch.float32) - half
            values = subtract_groups_(values, *_arrange(zeros, group_index, self.group))
        scales = parts.rows(self.scales, groups, first, last).to(torch.float32)
        return multiply_groups_(values, *_arrange(scales, group_index, self.group))

    def _zeros(self, parts: PartReader, groups: int, first: int, last: int) -> Tensor:
        """Zero points of these rows: those of 32 rows take `bits` rows of words."""
        assert self.zeros is not None
        begin, end = first // WORD_BITS, -(-last // WORD_BITS)
        last_line = min(end * self.bits, self.zeros.shape[0])
        words = parts.rows(self.zeros, groups, begin * self.bits, last_line)
        zeros = unpack(words.T.contiguous(), self.bits, last - begin * WORD_BITS)
        return zeros[:, first - begin * WORD_BITS :].T


def _arrange(operands: Tensor, group_index: Tensor | None, group: int) -> tuple[Tensor, int]:
    """Scales or zero points, and the columns that each covers: one, if columns were sorted before they were grouped."""
    if group_index is None:
        return operands, group
    consecutive = torch.arange(len(group_index), dtype=group_index.dtype) // group
    if torch.equal(group_index, consecutive):
        return operands, group
    return torch.index_select(operands, 1, group_index.to(torch.int32)), 1


@dataclass(frozen=True)
class GptqDecoder(Decoder):
    """GPTQ and AWQ: stored as inputs x outputs, so a row of the matrix is a column of the file.

    (code - zero) * scale. GPTQ packs down the inputs, and its first format stores zero points minus one; AWQ packs
    along the outputs, in an order of its own.
    """

    packed: TensorInfo
    scales: TensorInfo
    zeros: TensorInfo
    group_index: TensorInfo | None
    shape: tuple[int, int]
    bits: int
    group: int
    storage: StorageFormat
    awq: bool = False
    zero_offset: int = 0

    def decode(self, parts: PartReader, first: int, last: int) -> Tensor:
        words, zero_words, scales = (
            parts.slab(part, 0, 1).view(part.shape) for part in (self.packed, self.zeros, self.scales)
        )
        if self.awq:
            codes = self._unpack_outputs(words, first, last).T.contiguous()
        else:
            codes = unpack(words[:, first:last].T, self.bits, self.shape[1])
        zeros = self._unpack_outputs(zero_words, first, last) + self.zero_offset & (1 << self.bits) - 1
        group_index = None if self.group_index is None else parts.whole(self.group_index)
        zeros, scales = zeros.T.to(torch.float32), scales[:, first:last].T.to(torch.float32)
        values = subtract_groups_(codes.to(torch.float32), *_arrange(zeros, group_index, self.group))
        return multiply_groups_(values, *_arrange(scales, group_index, self.group))

    def _unpack_outputs(self, words: Tensor, first: int, last: int) -> Tensor:
        """Columns first to last of what is packed along the outputs."""
        begin, end = first // WORD_BITS, -(-last // WORD_BITS)
        part = words[:, begin * self.bits : end * self.bits]
        codes = unpack(part, self.bits, part.shape[1] * WORD_BITS // self.bits)
        if self.awq:
            codes = codes.view(len(codes), -1, len(AWQ_ORDER))[:, :, list(AWQ_ORDER)].flatten(1)
        return codes[:, first - begin * WORD_BITS : last - begin * WORD_BITS]
