"""A delta that is known as a product of two thin factors: its spectrum and its sums, without the matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from deltarank.spectra.delta import Sums
from deltarank.spectra.spectrum import Level, Spectrum
from deltarank.spectra.workspace import Workspace

SMALLEST = 1e-12
"""Of the largest singular value: what is smaller is rounding of float64, and counts as nothing."""


def product_spectrum(left: Tensor, right: Tensor) -> Spectrum:
    """All singular values of D = left right, (rows, k) times (k, columns), in float64.

    With left = Q1 R1 and right' = Q2 R2, they are those of R1 R2', a matrix of k x k; the rest are zero. The energy of
    their tail is summed from the tail, smallest first, so no loss is a difference of large numbers.
    """
    small = torch.linalg.qr(left.double(), mode="r").R @ torch.linalg.qr(right.double().T, mode="r").R.T
    side = min(left.shape[0], right.shape[1])
    found = torch.linalg.svdvals(small)[:side]
    values = torch.where(found > SMALLEST * found[:1], found, 0.0)
    tails = values.square().flip(0).cumsum(0).flip(0).tolist()
    levels = [*(Level(i, tail) for i, tail in enumerate(tails)), Level(len(tails), 0.0)]
    padding = [0.0] * (side - len(values))
    return Spectrum((*values.tolist(), *padding), tuple(levels), side, complete=True, solver="factors")


def product_sums(base: Tensor, left: Tensor, right: Tensor, workspace: Workspace) -> Sums:
    """Sums over some rows of D = left right beside those rows of the base.

    The energy is left at 0: the spectrum has it. Nothing was rounded to be stored, so nothing of D is rounding.
    """
    added = workspace.empty("chunk", tuple(base.shape), torch.float32)
    torch.matmul(left.to(added), right.to(added), out=added)
    absolute = float(added.abs_().sum(dtype=_widest(added)))
    before = added.copy_(base)
    energy = float(before.square_().sum(dtype=_widest(added)))
    return Sums(base_energy=energy, absolute=absolute, entries=base.numel())


def _widest(values: Tensor) -> torch.dtype:
    # Apple's GPUs know no float64.
    return torch.float32 if values.device.type == "mps" else torch.float64
