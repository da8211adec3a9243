"""One delta in, its spectrum out: solve, and where little is left, measure what is left."""

from __future__ import annotations

import torch
from torch import Tensor

from deltarank.spectra.delta import energy_of
from deltarank.spectra.solver import Solver
from deltarank.spectra.spectrum import Level, Spectrum
from deltarank.spectra.workspace import Workspace

SMALL_LOSS = 1e-4
"""Under this share of ||D||^2 a loss is not found by subtraction: float32 leaves 1e-7 of noise, a thousandth of it."""

CLIFF = 0.1
MOST_LEVELS = 3


def measure_spectrum(
    delta: Tensor, energy: float, *, ranks: tuple[int, ...], solver: Solver, edge: float, workspace: Workspace
) -> Spectrum:
    """The spectrum of `delta`, (rows, columns), which is overwritten.

    Where the loss at an asked rank is small, or the values fall off a cliff with the noise edge out of sight, the
    leading subspace Q is taken out, D <- D - Q Q'D, and the rest is measured by itself: its energy is summed, not
    subtracted, and its singular values are found at their own scale.

    Args:
        energy: ||D||^2, summed from the entries.
        ranks: those at which a loss is asked for.
        edge: the noise edge, in the unit of the weights.
    """
    side = min(delta.shape)
    values: list[float] = []
    levels = [Level(0, energy)]
    complete = False
    while True:
        start = len(values)
        part = solver.leading(delta, levels[-1].energy, energy, tuple(r - start for r in ranks if r > start))
        found = part.values[: side - start]
        known = Spectrum((*values, *found.tolist()), tuple(levels), side, part.complete, solver.name)
        cut = count_resolved(found, solver.resolution)
        if len(levels) == MOST_LEVELS or not must_refine(known, found, cut, ranks, edge):
            return known
        _take_out(delta, _sharpened(delta, part.basis(cut)))
        values += found[:cut].tolist()
        levels.append(Level(len(values), energy_of(delta)))
        if not any(rank > len(values) for rank in ranks):
            complete = part.complete and len(values) == side
            return Spectrum(tuple(values), tuple(levels), side, complete, solver.name)


def count_resolved(found: Tensor, resolution: float) -> int:
    """How many of the values the solver can tell from its own rounding."""
    return int((found.square() > resolution * float(found[0]) ** 2).sum()) if len(found) else 0


def must_refine(known: Spectrum, found: Tensor, cut: int, ranks: tuple[int, ...], edge: float) -> bool:
    start = known.levels[-1].start
    is_whole = known.complete and cut > 0.75 * len(found)  # hardly anything would be left to measure
    if cut == 0 or is_whole:
        return False
    asked = [min(r, len(known.values)) for r in ranks if start + cut <= r < known.max_rank]
    if any(known.lost(rank) < SMALL_LOSS * known.energy for rank in asked):
        return True
    falls = cut < len(found) and float(found[cut]) ** 2 < CLIFF * float(found[cut - 1]) ** 2
    return falls and edge**2 < 0.1 * SMALL_LOSS * float(found[0]) ** 2


def _sharpened(delta: Tensor, basis: Tensor) -> Tensor:
    """One step of subspace iteration: directions found in bfloat16, or through a Gram matrix, are not yet float32's."""
    wide = delta if delta.shape[0] <= delta.shape[1] else delta.T
    sharpened: Tensor = torch.linalg.qr(wide @ (wide.T @ basis)).Q
    return sharpened


def _take_out(delta: Tensor, basis: Tensor) -> None:
    """(I - Q Q') D (I - V V') in place, where Q spans the leading singular vectors of the short side, V of the other.

    With exact vectors one side would do. Q is off by float32's rounding, which leaves 1e-7 of the largest value: more
    than the noise edge of weights stored in float32. With both sides the square of that is left.
    """
    wide = delta if delta.shape[0] <= delta.shape[1] else delta.T
    other = torch.linalg.qr(wide.T @ basis).Q
    wide.addmm_(basis, basis.T @ wide, alpha=-1)
    wide.addmm_(wide @ other, other.T, alpha=-1)


def reference_singular_values(delta: Tensor) -> Tensor:
    """All singular values by a full SVD in float64 on the CPU: slow, and nobody's approximation."""
    values: Tensor = torch.linalg.svdvals(delta.to("cpu", torch.float64))
    return values
