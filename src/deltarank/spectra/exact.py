"""All singular values, by the Gram matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from deltarank.spectra import eigen as eigen
from deltarank.spectra.gram import gram_matrix
from deltarank.spectra.solver import LeadingValues
from deltarank.spectra.workspace import Workspace

DOMINANT = 0.2
"""If one value has this share of the energy or more, the eigenvalues of the Gram matrix are computed in float64.

In float32 their error is 1e-7 of the largest value, which may be a thousandth of the small ones: with one dominant
value and a flat rest the error of the cosine distance was 1.4e-6 (512 x 1024); in float64 it is 1e-8.
"""


class Exact:
    """Square roots of the eigenvalues of D D' (or D' D, the smaller).

    Squaring halves the digits of small values: an energy below `resolution` of the largest is rounding error. For
    energies this hardly matters (measured: cosine distance within 1e-6 of float64 on every spectrum, in float32).
    """

    name = "exact"
    resolution = 1e-5

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    def leading(self, delta: Tensor, energy: float, whole: float, ranks: tuple[int, ...]) -> LeadingValues:
        lower = gram_matrix(delta, self._workspace)
        energies = eigen.eigenvalues(lower)
        if float(energies[-1]) > DOMINANT * energy and lower.device.type != "mps":
            energies = eigen.eigenvalues(lower.to(torch.float64))
        values = energies.flip(0).double().cpu().clamp_(min=0).sqrt_()
        return LeadingValues(
            values, complete=True, basis=lambda count: eigen.leading_eigenvectors(lower, count).to(delta.dtype)
        )
