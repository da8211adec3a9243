"""Many small matrices of one shape at once: a mixture of experts has tens of thousands, and each call has its price.

Measured on one thread, a matrix: 64 x 128 takes 1.0 ms by itself, of which the eigenvalues are 0.09; 256 x 512 takes
3.4, of which the product and the eigenvalues are 2.5. So larger ones gain nothing by being stacked.
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

LARGEST = 1 << 17
"""Entries of a matrix that is measured in a stack."""

MOST = 1 << 20
"""Entries of a stack: as many as the scratch of one large matrix has."""


def batch_size(rows: int, columns: int) -> int:
    """How many matrices of this shape are measured at once; 1: each by itself."""
    return MOST // (rows * columns) if 0 < rows * columns <= LARGEST else 1


def measure_batch(
    deltas: Tensor,
    energies: Sequence[float],
    *,
    ranks: tuple[int, ...],
    edges: Sequence[float],
    workspace: Workspace,
) -> list[Spectrum | None]:
    """The spectra of (n, rows, columns) deltas by the Gram matrices of their short sides.

    None where more has to be done than finding eigenvalues once: a loss that is small, a cliff, one dominant value,
    or eigenvalues that do not add up. `measure` does that, one matrix at a time; the deltas are left as they were.

    Args:
        energies: ||D||^2 of each.
        ranks: those at which a loss is asked for.
        edges: the noise edge of each, in the unit of the weights.
    """
    wide = deltas if deltas.shape[1] <= deltas.shape[2] else deltas.transpose(1, 2)
    number, side = wide.shape[:2]
    wide = wide.to(accumulation_dtype(side, deltas))
    gram = torch.bmm(wide, wide.transpose(1, 2), out=workspace.empty("grams", (number, side, side), wide.dtype))
    found = eigen.batched_eigenvalues(gram)
    if found is None:
        return [None] * number
    return [
        None if values is None else _settled(values, energy, ranks=ranks, edge=edge)
        for values, energy, edge in zip(found, energies, edges, strict=True)
    ]


def _settled(found: Tensor, energy: float, *, ranks: tuple[int, ...], edge: float) -> Spectrum | None:
    """`found`: eigenvalues, ascending."""
    if float(found[-1]) > DOMINANT * energy:
        return None
    values = found.flip(0).double().clamp_(min=0).sqrt_()
    known = Spectrum(tuple(values.tolist()), (Level(0, energy),), len(values), True, Exact.name)
    return None if must_refine(known, values, count_resolved(values, Exact.resolution), ranks, edge) else known
