"""The spectrum and the sums of a delta that is given as a product of two thin factors, without forming it."""

from __future__ import annotations

import torch
from torch import Tensor

from deltarank.spectra.delta import Sums, widest_dtype
from deltarank.spectra.spectrum import Level, Spectrum
from deltarank.spectra.workspace import Workspace

NEGLIGIBLE = 1e-12
"""The share of the largest singular value below which a value is rounding of float64, and counts as zero."""


def product_spectrum(left: Tensor, right: Tensor) -> Spectrum:
    """All singular values of D = left right, (rows, k) times (k, columns), in float64.

    With left = Q1 R1 and right' = Q2 R2, they are those of R1 R2', a matrix of k x k; the rest are zero. The energy of
    their tail is summed from the smallest value up, so that no loss is a difference of large numbers.
    """
    small = torch.linalg.qr(left.double(), mode="r").R @ torch.linalg.qr(right.double().T, mode="r").R.T
    side = min(left.shape[0], right.shape[1])
    computed = torch.linalg.svdvals(small)[:side]
    values = torch.where(computed > NEGLIGIBLE * computed[:1], computed, 0.0)
    tails = values.square().flip(0).cumsum(0).flip(0).tolist()
    levels = [*(Level(i, tail) for i, tail in enumerate(tails)), Level(len(tails), 0.0)]
    padding = [0.0] * (side - len(values))
    return Spectrum((*values.tolist(), *padding), tuple(levels), side, complete=True, solver="factors")


def product_sums(base: Tensor, left: Tensor, right: Tensor, workspace: Workspace) -> Sums:
    """Sums over some rows of D = left right and the same rows of the base.

    The energy stays 0: the spectrum has it. So does the rounding energy: the sum W was never stored, hence not rounded.
    """
    added = workspace.empty("chunk", tuple(base.shape), torch.float32)
    torch.matmul(left.to(added), right.to(added), out=added)
    absolute = float(added.abs_().sum(dtype=widest_dtype(added)))
    stored = added.copy_(base)
    energy = float(stored.square_().sum(dtype=widest_dtype(added)))
    return Sums(base_energy=energy, absolute=absolute, entries=base.numel())
