"""Whole numbers of 1 to 8 bits, packed into words of 32, with a scale and perhaps a zero for each group of columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from deltarank.checkpoints.formats.decoded_source import Parts
from deltarank.checkpoints.formats.lookup_tables import scaled, shifted
from deltarank.checkpoints.formats.safetensors_header import TensorInfo
from deltarank.checkpoints.formats.storage import Storage

WORD = 32
AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where AutoAWQ puts eight numbers of four bits in a word."""


def integer_error(bits: int, group: int) -> float:
    """The relative error of rounding normally distributed numbers to 2^bits even steps over each group's range.

    step^2 / 12 over a step of 2 max / (2^bits - 1), with the largest of a group as extreme value theory has it.
    """
    largest = NormalDist().inv_cdf(1 - 0.2807 / max(group, 2))
    return largest / (math.sqrt(3) * ((1 << bits) - 1))


def unpack(words: Tensor, bits: int, count: int) -> Tensor:
    """The first `count` numbers of each row of words (int32), the lowest bits first, with no bit unused."""
    if bits in (4, 8):
        octets = words.contiguous().view(torch.uint8)
        found = octets if bits == 8 else torch.stack([octets & 15, octets >> 4], dim=-1).flatten(1)
        return found[:, :count]
    mask = (1 << bits) - 1
    if WORD % bits == 0:
        shifts = torch.arange(0, WORD, bits, dtype=torch.int32)
        return (words.unsqueeze(-1) >> shifts & mask).flatten(1)[:, :count]
    wide = torch.nn.functional.pad(words.to(torch.int64) & 0xFFFFFFFF, (0, 1))
    at = torch.arange(count) * bits
    pairs = wide[:, at // WORD] | wide[:, at // WORD + 1] << WORD
    return pairs >> at % WORD & mask


def words_of(count: int, bits: int) -> int:
    return -(-count * bits // WORD)


@dataclass(frozen=True)
class Packed:
    """compressed-tensors' `pack-quantized`: rows of codes, rows of scales; zeros packed down the columns.

    (code - 2^(bits - 1) - zero) * scale, with `group` columns to a scale. `order` names each column's group where
    columns were sorted before they were grouped (`g_idx`).
    """

    packed: TensorInfo
    scales: TensorInfo
    zeros: TensorInfo | None
    order: TensorInfo | None
    shape: tuple[int, ...]
    bits: int
    group: int
    storage: Storage

    @property
    def parts(self) -> Sequence[TensorInfo]:
        return tuple(part for part in (self.packed, self.scales, self.zeros, self.order) if part is not None)

    def decode(self, parts: Parts, first: int, last: int) -> Tensor:
        columns, half = self.shape[-1], 1 << (self.bits - 1)
        words = parts.rows(self.packed, words_of(columns, self.bits), first, last)
        values = unpack(words, self.bits, columns).to(torch.float32).sub_(half)
        if self.scales.entries == 1:
            return values.mul_(parts.whole(self.scales).to(torch.float32).view(1, 1))
        groups = self.scales.shape[-1]
        order = None if self.order is None else parts.whole(self.order)
        if self.zeros is not None:
            zeros = self._zeros(parts, groups, first, last).to(torch.float32) - half
            values = shifted(values, *_laid_out(zeros, order, self.group))
        scales = parts.rows(self.scales, groups, first, last).to(torch.float32)
        return scaled(values, *_laid_out(scales, order, self.group))

    def _zeros(self, parts: Parts, groups: int, first: int, last: int) -> Tensor:
        """Of these rows: 32 rows take `bits` lines of words."""
        assert self.zeros is not None
        begin, end = first // WORD, -(-last // WORD)
        lines = min(end * self.bits, self.zeros.shape[0])
        words = parts.rows(self.zeros, groups, begin * self.bits, lines)
        found = unpack(words.T.contiguous(), self.bits, last - begin * WORD)
        return found[:, first - begin * WORD :].T


def _laid_out(found: Tensor, order: Tensor | None, group: int) -> tuple[Tensor, int]:
    """Numbers of groups and how many columns each counts for: one, where columns were sorted before they were grouped.

    An order that names the groups one after the other is none.
    """
    if order is None or torch.equal(order, torch.arange(len(order), dtype=order.dtype) // group):
        return found, group
    return torch.index_select(found, 1, order.to(torch.int32)), 1


@dataclass(frozen=True)
class Transposed:
    """GPTQ and AWQ: stored as inputs x outputs, so a row of the matrix is a column of the file.

    (code - zero) * scale. GPTQ packs down the inputs, and its first format stores zeros less one; AWQ packs along the
    outputs, in an order of its own.
    """

    packed: TensorInfo
    scales: TensorInfo
    zeros: TensorInfo
    order: TensorInfo | None
    shape: tuple[int, int]
    bits: int
    group: int
    storage: Storage
    awq: bool = False
    zero_offset: int = 0

    @property
    def parts(self) -> Sequence[TensorInfo]:
        return tuple(part for part in (self.packed, self.scales, self.zeros, self.order) if part is not None)

    def decode(self, parts: Parts, first: int, last: int) -> Tensor:
        inputs = self.shape[1]
        words = parts.slab(self.packed, 0, 1).view(self.packed.shape)
        if self.awq:
            codes = self._along(words, first, last).T.contiguous()
        else:
            codes = unpack(words[:, first:last].T, self.bits, inputs)
        zeros = self._along(parts.slab(self.zeros, 0, 1).view(self.zeros.shape), first, last)
        zeros = zeros + self.zero_offset & (1 << self.bits) - 1
        scales = parts.slab(self.scales, 0, 1).view(self.scales.shape)[:, first:last]
        order = None if self.order is None else parts.whole(self.order)
        values = shifted(codes.to(torch.float32), *_laid_out(zeros.T.to(torch.float32), order, self.group))
        return scaled(values, *_laid_out(scales.T.to(torch.float32), order, self.group))

    def _along(self, words: Tensor, first: int, last: int) -> Tensor:
        """Columns first to last of what is packed along the outputs."""
        begin, end = first // WORD, -(-last // WORD)
        part = words[:, begin * self.bits : end * self.bits]
        found = unpack(part, self.bits, part.shape[1] * WORD // self.bits)
        if self.awq:
            found = found.view(len(found), -1, len(AWQ_ORDER))[:, :, list(AWQ_ORDER)].flatten(1)
        return found[:, first - begin * WORD : last - begin * WORD]
