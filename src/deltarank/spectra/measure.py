"""The spectrum of one delta: solve, and where little is left, measure what is left."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deltarank.spectra.delta import energy_of
from deltarank.spectra.solver import Solver
from deltarank.spectra.spectrum import Level, Spectrum
from deltarank.spectra.workspace import Workspace

SMALL_LOSS = 1e-4
"""Below this share of ||D||^2 a loss is not found by subtraction: float32 leaves 1e-7 of noise, a thousandth of it."""

CLIFF = 0.1
"""The ratio of successive energies below which the spectrum is said to have a cliff."""

MAX_LEVELS = 3


def measure_spectrum(
    delta: Tensor, energy: float, *, ranks: tuple[int, ...], solver: Solver, edge: float, workspace: Workspace
) -> Spectrum:
    """The spectrum of `delta`, (rows, columns), which is overwritten.

    Where the loss at a requested rank is small, or the spectrum has a cliff and the solver cannot resolve the noise
    edge, D is deflated: the leading subspace Q is taken out, D <- D - Q Q'D, and the rest is measured by itself. Its
    energy is summed, not subtracted, and its singular values are found at their own scale.

    One value more than the largest rank is found: if it is below the noise edge, the signal rank is known.

    Args:
        energy: ||D||^2, summed from the entries.
        ranks: the ranks at which losses are needed.
        edge: the noise edge, in the unit of the weights; infinite if the signal rank is not needed.
    """
    side = min(delta.shape)
    wanted = tuple(dict.fromkeys((*ranks, min(max(ranks) + 1, side)))) if math.isfinite(edge) else ranks
    values: list[float] = []
    levels = [Level(0, energy)]
    complete = False
    while True:
        start = len(values)
        part = solver.leading(delta, levels[-1].energy, energy, tuple(r - start for r in wanted if r > start))
        new = part.values[: side - start]
        spectrum = Spectrum((*values, *new.tolist()), tuple(levels), side, part.complete, solver.name)
        resolved = count_resolved(new, solver.resolution)
        if len(levels) == MAX_LEVELS or not must_refine(spectrum, new, resolved, ranks, edge):
            return spectrum
        _deflate(delta, _refine(delta, part.basis(resolved)))
        values += new[:resolved].tolist()
        levels.append(Level(len(values), energy_of(delta)))
        if not any(rank > len(values) for rank in wanted):
            complete = part.complete and len(values) == side
            return Spectrum(tuple(values), tuple(levels), side, complete, solver.name)


def count_resolved(values: Tensor, resolution: float) -> int:
    """How many of the values the solver can distinguish from its own rounding."""
    return int((values.square() > resolution * float(values[0]) ** 2).sum()) if len(values) else 0


def must_refine(spectrum: Spectrum, values: Tensor, resolved: int, ranks: tuple[int, ...], edge: float) -> bool:
    """Whether D must be deflated, since the solver cannot resolve such small losses.

    Args:
        spectrum: as known so far.
        values: the singular values that the solver found last.
        resolved: how many of them it could resolve.
    """
    start = spectrum.levels[-1].start
    is_whole = spectrum.complete and resolved > 0.75 * len(values)  # hardly anything would be left to measure
    if resolved == 0 or is_whole:
        return False
    unresolved = [min(r, len(spectrum.values)) for r in ranks if start + resolved <= r < spectrum.max_rank]
    if any(spectrum.lost(rank) < SMALL_LOSS * spectrum.energy for rank in unresolved):
        return True
    has_cliff = resolved < len(values) and float(values[resolved]) ** 2 < CLIFF * float(values[resolved - 1]) ** 2
    return has_cliff and edge**2 < 0.1 * SMALL_LOSS * float(values[0]) ** 2


def _refine(delta: Tensor, basis: Tensor) -> Tensor:
    """One step of subspace iteration: directions from bfloat16, or from a Gram matrix, are less exact than float32."""
    wide = delta if delta.shape[0] <= delta.shape[1] else delta.T
    refined: Tensor = torch.linalg.qr(wide @ (wide.T @ basis)).Q
    return refined


def _deflate(delta: Tensor, basis: Tensor) -> None:
    """(I - Q Q') D (I - V V') in place, where Q spans the leading singular vectors of the short side, V of the other.

    With exact vectors one side would be enough. The rounding of Q in float32 leaves 1e-7 of the largest value, more
    than the noise edge of weights stored in float32. With both sides, the square of that is left.
    """
    wide = delta if delta.shape[0] <= delta.shape[1] else delta.T
    other = torch.linalg.qr(wide.T @ basis).Q
    wide.addmm_(basis, basis.T @ wide, alpha=-1)
    wide.addmm_(wide @ other, other.T, alpha=-1)


def reference_singular_values(delta: Tensor) -> Tensor:
    """All singular values by a full SVD in float64 on the CPU: slow, but exact enough to check the solvers with."""
    values: Tensor = torch.linalg.svdvals(delta.to("cpu", torch.float64))
    return values
