"""The Gram matrix of a delta that is rounded to 8 bits: good enough to find directions by, at a third of the time."""

from __future__ import annotations

import torch
from torch import Tensor

from deltarank.spectra._low import int8_product
from deltarank.spectra._mixing import coupling
from deltarank.spectra._operator import Square
from deltarank.spectra._workspace import Workspace

STRIPES = 8
MOST_NOISE = 4e-4
"""Of the energy, that rounding to 8 bits may change. Gaussian rows of 8192 numbers: 1e-4; one entry in twenty: 3e-4."""

CAUTION = 3.0
"""By so much the noise is taken as larger, for the rounding of blocks and of the Gram matrix itself."""

_TINY = 1e-30
_ENTRIES = 1 << 18


def rounded_gram(wide: Tensor, energy: float, workspace: Workspace) -> Square | None:
    """D D' of D rounded to 8 bits, each row to a scale of its own; None if that would change D by too much.

    The products of whole numbers are exact, so that rounding D is nearly all that is lost: an error that is uniform
    within half a step of each row's scale.
    """
    side, length = wide.shape
    scales = _scales(wide)
    noise = length * float(scales.double().square().sum()) / 12
    if noise > MOST_NOISE * energy:  # of a delta of which nothing is left, too
        return None
    error = noise / energy
    numbers = _rounded(wide, scales, workspace)
    low = workspace.lend("rounded gram", (side, side), torch.bfloat16)
    diagonal = torch.empty_like(scales)
    step = -(-side // STRIPES)
    for first in range(0, side, step):
        last = min(first + step, side)
        part = _scaled(_stripe(numbers, first, last, workspace), scales, first, workspace)
        diagonal[first:last] = part[:, first:last].diagonal()
        low[first:last, :last] = part
        low[:first, first:last] = low[first:last, :first].T
    low.diagonal().zero_()
    return Square(low, diagonal, noise=coupling(energy, side, length, CAUTION * error))


def _stripe(numbers: Tensor, first: int, last: int, workspace: Workspace) -> Tensor:
    """Rows `first` to `last` of N N', as far as the diagonal: (last - first, last), in the faster order."""
    count = last - first
    if numbers.is_contiguous():
        out = workspace.lend("rounded stripe", (last, count), torch.int32)
        return int8_product(numbers[:last], numbers[first:last].T, out=out).T
    out = workspace.lend("rounded stripe", (count, last), torch.int32)
    return int8_product(numbers[first:last], numbers[:last].T, out=out)


def _scaled(stripe: Tensor, scales: Tensor, first: int, workspace: Workspace) -> Tensor:
    count, last = stripe.shape
    out = workspace.lend("rounded stripe, scaled", (count, last), scales.dtype)
    torch.mul(stripe, scales[:last], out=out)
    return out.mul_(scales[first : first + count, None])


def _stored(wide: Tensor) -> Tensor:
    return wide if wide.is_contiguous() else wide.T


def _scales(wide: Tensor) -> Tensor:
    """(side,): the largest number of each row becomes 127."""
    stored = _stored(wide)
    tops = [_largest(part, 1 if stored is wide else 0) for part in _parts(stored)]
    scales = torch.cat(tops) if stored is wide else torch.stack(tops).amax(0)
    return scales.clamp_(min=_TINY).div_(127)


def _rounded(wide: Tensor, scales: Tensor, workspace: Workspace) -> Tensor:
    """(side, length) numbers of 8 bits, laid out as `wide` is: it is about numbers * scales."""
    stored = _stored(wide)
    numbers = workspace.lend("rounded", stored.shape, torch.int8)
    divisors = scales[:, None] if stored is wide else scales.expand(stored.shape)
    for part, out, by in zip(_parts(stored), _parts(numbers), torch.split(divisors, _rows(stored)), strict=True):
        out.copy_(torch.div(part, by, out=workspace.like("rounding", part)).round_())
    return numbers if stored is wide else numbers.T


def _rows(stored: Tensor) -> int:
    return max(1, _ENTRIES // stored.shape[1])


def _parts(stored: Tensor) -> tuple[Tensor, ...]:
    """Some rows at a time, which stay in the cache."""
    parts: tuple[Tensor, ...] = torch.split(stored, _rows(stored))
    return parts


def _largest(part: Tensor, axis: int) -> Tensor:
    """Of the absolute values, along an axis. (torch.aminmax takes ten times as long.)"""
    return torch.maximum(part.amax(axis), part.amin(axis).neg_())
