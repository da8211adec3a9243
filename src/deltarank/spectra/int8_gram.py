"""The Gram matrix of a delta rounded to int8: accurate enough to find directions, in a third of the time."""

from __future__ import annotations

import torch
from torch import Tensor

from deltarank.spectra.low_precision import int8_product
from deltarank.spectra.operator import GramOperator
from deltarank.spectra.rounding_bias import noise_deviation
from deltarank.spectra.workspace import Workspace

STRIPE_COUNT = 8
MAX_NOISE = 4e-4
"""The share of the energy that rounding to int8 may change.

In Gaussian rows of 8192 entries it changes 1e-4; with one entry in twenty nonzero, 3e-4.
"""

NOISE_MARGIN = 3.0
"""A factor on the noise, which covers the rounding of blocks and of the Gram matrix itself."""

PADDING = 32
"""Entries between two rows: with rows a power of two apart, all entries of a column would share a few cache lines."""

_SMALLEST_SCALE = 1e-30
_CHUNK_ENTRIES = 1 << 18


def int8_gram_operator(wide: Tensor, energy: float, workspace: Workspace) -> GramOperator | None:
    """D D' of D rounded to int8, with a scale for each row; None if that would change D by too much.

    Products of integers are exact, so that rounding D causes nearly all of the error, which is uniform within half a
    step of each row's scale.
    """
    side, length = wide.shape
    scales = _row_scales(wide)
    noise = length * float(scales.double().square().sum()) / 12
    if noise > MAX_NOISE * energy:  # also true if nothing is left of D
        return None
    quantised = _quantise(wide, scales, workspace)
    gram, diagonal = _int8_gram(quantised, workspace)
    return GramOperator(
        gram, scales, diagonal * scales**2, noise=noise_deviation(energy, side, length, NOISE_MARGIN * noise / energy)
    )


def _int8_gram(quantised: Tensor, workspace: Workspace) -> tuple[Tensor, Tensor]:
    """N N' in bfloat16 with zeros for its diagonal, (side, side), and the diagonal, (side,)."""
    side = quantised.shape[0]
    gram = workspace.empty("int8 gram", (side, side + PADDING), torch.bfloat16)[:, :side]
    diagonal = torch.empty(side, device=quantised.device)
    step = -(-side // STRIPE_COUNT)
    for first in range(0, side, step):
        last = min(first + step, side)
        exact, is_upright = _int8_stripe(quantised, first, last, workspace)
        stripe = workspace.empty("int8 gram stripe", exact.shape, torch.bfloat16).copy_(exact)
        transposed = workspace.empty("int8 gram stripe, transposed", stripe.T.shape, torch.bfloat16).copy_(stripe.T)
        columns, rows = (stripe, transposed) if is_upright else (transposed, stripe)
        gram[:last, first:last] = columns
        gram[first:last, :last] = rows
        diagonal[first:last] = (exact if is_upright else exact.T)[first:].diagonal()
    gram.diagonal().zero_()
    return gram, diagonal


def _int8_stripe(quantised: Tensor, first: int, last: int, workspace: Workspace) -> tuple[Tensor, bool]:
    """Columns `first` to `last` of N N', down to the diagonal; and whether they are stored as columns, or as rows.

    The memory layout of N decides which of the two is faster.
    """
    count, part = last - first, quantised[first:last]
    if quantised.is_contiguous():
        out = workspace.empty("int8 gram stripe", (last, count), torch.int32)
        return int8_product(quantised[:last], part.T, out=out), True
    out = workspace.empty("int8 gram stripe", (count, last), torch.int32)
    return int8_product(part, quantised[:last].T, out=out), False


def _contiguous(wide: Tensor) -> Tensor:
    return wide if wide.is_contiguous() else wide.T


def _row_scales(wide: Tensor) -> Tensor:
    """(side,): scales by which the largest entry of each row becomes 127."""
    stored = _contiguous(wide)
    maxima = torch.cat([_row_maxima(part) for part in _chunks(stored)]) if stored is wide else _column_maxima(stored)
    return maxima.clamp_(min=_SMALLEST_SCALE).div_(127)


def _row_maxima(part: Tensor) -> Tensor:
    """The largest absolute value of each row. (torch.aminmax takes ten times as long.)"""
    return torch.maximum(part.amax(1), part.amin(1).neg_())


def _column_maxima(stored: Tensor) -> Tensor:
    """The largest absolute value of each column, 64 rows at a time: amax along the columns takes twice as long."""
    maxima = stored.new_zeros(64, stored.shape[1])
    for part in torch.split(stored, 64):
        some = maxima[: len(part)]
        torch.maximum(some, part.abs(), out=some)
    return maxima.amax(0)


def _quantise(wide: Tensor, scales: Tensor, workspace: Workspace) -> Tensor:
    """(side, length) in int8, in the memory layout of `wide`, which is about the result times `scales`."""
    stored = _contiguous(wide)
    quantised = workspace.empty("int8", stored.shape, torch.int8)
    divisors = scales[:, None] if stored is wide else scales.expand(stored.shape)
    chunks = zip(_chunks(stored), _chunks(quantised), torch.split(divisors, _chunk_rows(stored)), strict=True)
    for part, out, divisor in chunks:
        out.copy_(torch.div(part, divisor, out=workspace.empty_like("rounding", part)).round_())
    return quantised if stored is wide else quantised.T


def _chunk_rows(stored: Tensor) -> int:
    return max(1, _CHUNK_ENTRIES // stored.shape[1])


def _chunks(stored: Tensor) -> tuple[Tensor, ...]:
    """Some rows at a time, which fit in the cache."""
    chunks: tuple[Tensor, ...] = torch.split(stored, _chunk_rows(stored))
    return chunks
