"""The best factors of a delta at one rank: what an adapter is made of."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from deltarank.spectra import _eigen as eigen
from deltarank.spectra._auto import gram_and_vectors_seconds, krylov_seconds, rates
from deltarank.spectra._delta import energy_of
from deltarank.spectra._exact import DOMINANT
from deltarank.spectra._gram import gram
from deltarank.spectra._krylov import BLOCK, MOST_BLOCKS_BEYOND, Krylov
from deltarank.spectra._workspace import Workspace

SMALL_LOSS = 1e-2
RESOLUTION = 1e-5
"""Energies under this share of the largest are noise in a Gram matrix of float32 numbers."""

TIGHT = 1e-6
"""The tolerance at which Krylov directions, sharpened once, lose within 1e-6 of the least ||D - D_r||."""

TIGHTNESS = 6.0
"""How much longer than at its usual tolerance Krylov iteration is taken to last then."""

_ENTRIES = 1 << 20
_COLUMNS = 2048


@dataclass(frozen=True)
class Factors:
    """D_r, the rank-r delta, as left @ right, with the root of each singular value on either side.

    left     (rows, r) = U sqrt(S)
    right    (r, columns) = sqrt(S) V'
    values   the r singular values, largest first, in the unit of the weights
    energy   ||D||^2
    lost     ||D - D_r||^2, measured on the difference itself
    """

    left: Tensor
    right: Tensor
    values: tuple[float, ...]
    energy: float
    lost: float


def factors(delta: Tensor, rank: int, *, energy: float, workspace: Workspace) -> Factors:
    """The truncated singular value decomposition of `delta`, (rows, columns), which is left as it is.

    The leading subspace is that of the Gram matrix, or of a Krylov space where that is faster (large matrices),
    sharpened by a step of subspace iteration on `delta` itself, and within it the decomposition is that of a small
    matrix. Where float32 would be seen in the loss (one dominant value, a steep spectrum, or next to nothing lost) the
    Gram matrix is made in float64.

    Args:
        rank: at least 1; one beyond the short side is that side.
        energy: ||D||^2, summed from the entries; not 0.
    """
    wide = delta if delta.shape[0] <= delta.shape[1] else delta.T
    rank = min(rank, wide.shape[0])
    if rank == wide.shape[0]:
        return _within(delta, torch.eye(rank, dtype=delta.dtype, device=delta.device), energy, workspace)
    found = _within(delta, _sharpened(wide, _directions(delta, rank, energy, workspace)), energy, workspace)
    if delta.dtype == torch.float32 and delta.device.type != "mps" and _is_coarse(found):
        found = _within(delta, _sharpened(wide, _vectors(_gram64(wide), rank)), energy, workspace)
    return found


@dataclass(frozen=True)
class Cost:
    """How the factors of a matrix are found ("gram" or "krylov"), and what that takes, roughly: seconds, bytes."""

    way: str
    seconds: float
    memory: float


def factors_cost(rows: int, columns: int, rank: int, device: torch.device) -> Cost:
    """Of `factors`, and of measuring what they lose before and after they are rounded."""
    side = min(rows, columns)
    rank, known = min(rank, side), rates(device)
    rest = (4 + 2 + 4) * rows * columns * rank / known.symmetric  # sharpening, projection, two residuals
    if _iterates(rows, columns, rank, device):
        space = min(rank + MOST_BLOCKS_BEYOND * BLOCK, side)
        seconds = TIGHTNESS * krylov_seconds(rows, columns, rank, known)
        return Cost("krylov", seconds + rest, 4.0 * (rows * columns + space * (side + space)))
    seconds = gram_and_vectors_seconds(rows, columns, known) if rank < side else 0.0
    return Cost("gram", seconds + rest, 4.0 * (rows * columns + 4.0 * side**2))


def residual_energy(delta: Tensor, left: Tensor, right: Tensor, workspace: Workspace) -> float:
    """||delta - left right||^2, some rows at a time; the factors may be of any dtype."""
    left, right = left.to(delta.dtype), right.to(delta.dtype)
    step = max(1, _ENTRIES // delta.shape[1])
    parts = []
    for first in range(0, delta.shape[0], step):
        rows = delta[first : first + step]
        rest = workspace.lend("residual", rows.shape, delta.dtype)
        torch.addmm(rows, left[first : first + step], right, alpha=-1, out=rest)
        parts.append(energy_of(rest, workspace))
    return math.fsum(parts)


def _is_coarse(found: Factors) -> bool:
    first, last = found.values[0] ** 2, found.values[-1] ** 2
    return first > DOMINANT * found.energy or last < RESOLUTION * first or found.lost < SMALL_LOSS * found.energy


def _gram64(wide: Tensor) -> Tensor:
    """D D' in float64, through so many columns at a time."""
    out = torch.zeros(wide.shape[0], wide.shape[0], dtype=torch.float64, device=wide.device)
    for part in torch.split(wide, _COLUMNS, dim=1):
        double = part.double()
        out.addmm_(double, double.T)
    return out


def _directions(delta: Tensor, rank: int, energy: float, workspace: Workspace) -> Tensor:
    """(short side, rank): orthonormal, near the leading singular vectors of the short side, the largest first."""
    rows, columns = delta.shape
    if _iterates(rows, columns, rank, delta.device):
        solver = Krylov(workspace, tolerance=TIGHT, seed=0)
        found = solver.leading(delta, energy, energy, (rank,)).basis(rank)
        if found.shape[1] == rank:
            return found
    return _vectors(gram(delta, workspace), rank)


def _iterates(rows: int, columns: int, rank: int, device: torch.device) -> bool:
    """Whether a Krylov space is the faster way."""
    known = rates(device)
    is_small = min(rows, columns) <= 2 * rank + 4 * BLOCK
    tight = TIGHTNESS * krylov_seconds(rows, columns, rank, known)
    return not is_small and tight < gram_and_vectors_seconds(rows, columns, known)


def _vectors(lower: Tensor, rank: int) -> Tensor:
    """The leading eigenvectors of a Gram matrix, the largest first.

    All of them are found: MKL does that as fast as scipy's LAPACK finds the leading ones (2048 x 2048, one thread: 1 s
    and 1.2), and brings no threads of its own into the way of others.
    """
    return eigen.vectors(lower)[1].flip(1)[:, :rank]


def _sharpened(wide: Tensor, basis: Tensor) -> Tensor:
    """A step of subspace iteration: to the precision of `wide` itself.

    Each half of it is orthonormalised by itself: squaring `wide` would drown the small values in the rounding of the
    large.
    """
    other = torch.linalg.qr(wide.T @ basis.to(wide.dtype)).Q
    sharp: Tensor = torch.linalg.qr(wide @ other).Q
    return sharp


def _within(delta: Tensor, basis: Tensor, energy: float, workspace: Workspace) -> Factors:
    """The best factors whose short side lies in the span of `basis`: the decomposition of Q'D, which is small."""
    tall = delta.shape[0] > delta.shape[1]
    wide = delta.T if tall else delta
    projected = basis.T @ wide
    energies, turn = eigen.vectors(_square(projected).cpu())
    values = energies.flip(0).clamp_(min=0).sqrt_()
    turn = turn.flip(1).to(projected)
    roots = values.sqrt().to(projected)
    good = (values > torch.finfo(delta.dtype).eps * values[0]).to(projected.device)
    short = torch.where(good, (basis @ turn) * roots, 0.0)
    long = torch.where(good[:, None], (turn.T @ projected) / roots.clamp(min=1e-30)[:, None], 0.0)
    left, right = (long.T, short.T) if tall else (short, long)
    lost = residual_energy(delta, left, right, workspace)
    return Factors(left, right, tuple(values.tolist()), energy, lost)


def _square(projected: Tensor) -> Tensor:
    exact = projected.cpu().double() if projected.device.type == "mps" else projected.double()
    return exact @ exact.T
