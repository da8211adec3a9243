"""The Gram matrix of a delta that is rounded to 8 bits: good enough to find directions by, at a third of the time."""

from __future__ import annotations

import torch
from torch import Tensor

from deltarank.spectra.low_precision import int8_product
from deltarank.spectra.operator import GramOperator
from deltarank.spectra.rounding_bias import noise_deviation
from deltarank.spectra.workspace import Workspace

STRIPES = 8
MOST_NOISE = 4e-4
"""Of the energy, that rounding to 8 bits may change. Gaussian rows of 8192 numbers: 1e-4; one entry in twenty: 3e-4."""

CAUTION = 3.0
"""By so much the noise is taken as larger, for the rounding of blocks and of the Gram matrix itself."""

PADDING = 32
"""Numbers between two rows: of rows a power of two apart, all numbers of a column would share a few cache lines."""

_TINY = 1e-30
_ENTRIES = 1 << 18


def int8_gram_operator(wide: Tensor, energy: float, workspace: Workspace) -> GramOperator | None:
    """D D' of D rounded to 8 bits, each row to a scale of its own; None if that would change D by too much.

    The products of whole numbers are exact, so that rounding D is nearly all that is lost: an error that is uniform
    within half a step of each row's scale.
    """
    side, length = wide.shape
    scales = _scales(wide)
    noise = length * float(scales.double().square().sum()) / 12
    if noise > MOST_NOISE * energy:  # of a delta of which nothing is left, too
        return None
    numbers = _rounded(wide, scales, workspace)
    low, diagonal = _product(numbers, workspace)
    return GramOperator(
        low, scales, diagonal * scales**2, noise=noise_deviation(energy, side, length, CAUTION * noise / energy)
    )


def _product(numbers: Tensor, workspace: Workspace) -> tuple[Tensor, Tensor]:
    """N N' in bfloat16 with zeros for its diagonal, (side, side), and the diagonal, (side,)."""
    side = numbers.shape[0]
    low = workspace.empty("rounded gram", (side, side + PADDING), torch.bfloat16)[:, :side]
    diagonal = torch.empty(side, device=numbers.device)
    step = -(-side // STRIPES)
    for first in range(0, side, step):
        last = min(first + step, side)
        exact, is_upright = _stripe(numbers, first, last, workspace)
        stripe = workspace.empty("rounded stripe", exact.shape, torch.bfloat16).copy_(exact)
        turned = workspace.empty("rounded stripe, turned", stripe.T.shape, torch.bfloat16).copy_(stripe.T)
        upright, flat = (stripe, turned) if is_upright else (turned, stripe)
        low[:last, first:last] = upright
        low[first:last, :last] = flat
        diagonal[first:last] = (exact if is_upright else exact.T)[first:].diagonal()
    low.diagonal().zero_()
    return low, diagonal


def _stripe(numbers: Tensor, first: int, last: int, workspace: Workspace) -> tuple[Tensor, bool]:
    """Columns `first` to `last` of N N', as far as the diagonal, upright or as rows: whichever is faster."""
    count, part = last - first, numbers[first:last]
    if numbers.is_contiguous():
        out = workspace.empty("rounded stripe", (last, count), torch.int32)
        return int8_product(numbers[:last], part.T, out=out), True
    out = workspace.empty("rounded stripe", (count, last), torch.int32)
    return int8_product(part, numbers[:last].T, out=out), False


def _stored(wide: Tensor) -> Tensor:
    return wide if wide.is_contiguous() else wide.T


def _scales(wide: Tensor) -> Tensor:
    """(side,): the largest number of each row becomes 127."""
    stored = _stored(wide)
    tops = torch.cat([_largest(part) for part in _parts(stored)]) if stored is wide else _largest_of_columns(stored)
    return tops.clamp_(min=_TINY).div_(127)


def _largest(part: Tensor) -> Tensor:
    """Of the absolute values of each row. (torch.aminmax takes ten times as long.)"""
    return torch.maximum(part.amax(1), part.amin(1).neg_())


def _largest_of_columns(stored: Tensor) -> Tensor:
    """Row by row, 64 at a time beside each other: an amax along the columns takes twice as long."""
    highest = stored.new_zeros(64, stored.shape[1])
    for part in torch.split(stored, 64):
        some = highest[: len(part)]
        torch.maximum(some, part.abs(), out=some)
    return highest.amax(0)


def _rounded(wide: Tensor, scales: Tensor, workspace: Workspace) -> Tensor:
    """(side, length) numbers of 8 bits, laid out as `wide` is: it is about numbers * scales."""
    stored = _stored(wide)
    numbers = workspace.empty("rounded", stored.shape, torch.int8)
    divisors = scales[:, None] if stored is wide else scales.expand(stored.shape)
    for part, out, by in zip(_parts(stored), _parts(numbers), torch.split(divisors, _rows(stored)), strict=True):
        out.copy_(torch.div(part, by, out=workspace.empty_like("rounding", part)).round_())
    return numbers if stored is wide else numbers.T


def _rows(stored: Tensor) -> int:
    return max(1, _ENTRIES // stored.shape[1])


def _parts(stored: Tensor) -> tuple[Tensor, ...]:
    """Some rows at a time, which stay in the cache."""
    parts: tuple[Tensor, ...] = torch.split(stored, _rows(stored))
    return parts
