"""Many small matrices of one shape at once: a mixture of experts has tens of thousands, and each call has overhead.

Measured on one thread, per matrix: 64 x 128 takes 1.0 ms by itself, of which the eigenvalues take 0.09; 256 x 512 takes
3.4 ms, of which the product and the eigenvalues take 2.5. So larger matrices gain nothing from batches.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deltarank.spectra import eigen as eigen
from deltarank.spectra.exact import DOMINANT, Exact
from deltarank.spectra.gram import accumulation_dtype
from deltarank.spectra.measure import count_resolved, must_refine
from deltarank.spectra.spectrum import Level, Spectrum
from deltarank.spectra.workspace import Workspace

LARGEST_MATRIX = 1 << 17
"""The most entries of a matrix that is measured in a batch."""

LARGEST_BATCH = 1 << 20
"""The most entries of a batch: as many as the scratch of one large matrix has."""


def batch_size(rows: int, columns: int) -> int:
    """How many matrices of this shape are measured at once; 1: each alone."""
    return LARGEST_BATCH // (rows * columns) if 0 < rows * columns <= LARGEST_MATRIX else 1


def measure_batch(
    deltas: Tensor,
    energies: Sequence[float],
    *,
    ranks: tuple[int, ...],
    edges: Sequence[float],
    workspace: Workspace,
) -> list[Spectrum | None]:
    """The spectra of (n, rows, columns) deltas by the Gram matrices of their short sides.

    None where finding the eigenvalues once is not enough: a small loss, a cliff in the spectrum, one dominant value, or
    eigenvalues that do not add up. `measure_spectrum` handles those, one at a time; `deltas` is not modified.

    Args:
        energies: ||D||^2 of each.
        ranks: the ranks at which losses are needed.
        edges: the noise edge of each, in the unit of the weights.
    """
    wide = deltas if deltas.shape[1] <= deltas.shape[2] else deltas.transpose(1, 2)
    number, side = wide.shape[:2]
    wide = wide.to(accumulation_dtype(side, deltas))
    gram = torch.bmm(wide, wide.transpose(1, 2), out=workspace.empty("grams", (number, side, side), wide.dtype))
    eigenvalues = eigen.batched_eigenvalues(gram)
    if eigenvalues is None:
        return [None] * number
    return [
        None if values is None else _spectrum_or_none(values, energy, ranks=ranks, edge=edge)
        for values, energy, edge in zip(eigenvalues, energies, edges, strict=True)
    ]


def _spectrum_or_none(eigenvalues: Tensor, energy: float, *, ranks: tuple[int, ...], edge: float) -> Spectrum | None:
    """The spectrum from ascending eigenvalues; None where it must be refined."""
    if float(eigenvalues[-1]) > DOMINANT * energy:
        return None
    values = eigenvalues.flip(0).double().clamp_(min=0).sqrt_()
    spectrum = Spectrum(tuple(values.tolist()), (Level(0, energy),), len(values), True, Exact.name)
    return None if must_refine(spectrum, values, count_resolved(values, Exact.resolution), ranks, edge) else spectrum
