"""The best factors of a delta at one rank: what an adapter is made of."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from deltarank.spectra import eigen as eigen
from deltarank.spectra.cost_model import DeviceRates, device_rates, gram_and_vectors_seconds, krylov_seconds
from deltarank.spectra.delta import energy_of
from deltarank.spectra.exact import DOMINANT
from deltarank.spectra.gram import gram_matrix
from deltarank.spectra.krylov import MOST_BEYOND, Krylov, fills_short_side
from deltarank.spectra.subspace_iteration import Subspace
from deltarank.spectra.workspace import Workspace

SMALL_LOSS = 1e-2
RESOLUTION = 1e-5
"""Energies under this share of the largest are noise in a Gram matrix of float32 numbers."""

TIGHT = 1e-6
"""The tolerance at which Krylov directions, sharpened once, lose within 1e-6 of the least ||D - D_r||."""

TIGHTNESS = 6.0
"""How much longer than at its usual tolerance Krylov iteration is taken to last then."""

ROUGH = 1.5e-5
"""The tolerance for directions in few bits: below, their noise is all that is left to see."""

MOST_GAIN = 3e-6
"""They are sharpened until half a step gains this share of ||D||^2 or less: then up to three times that is left."""

ROUGHNESS = 1.5
MOST_TURNS = 6

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


def factorise(delta: Tensor, rank: int, *, energy: float, workspace: Workspace) -> Factors:
    """The truncated singular value decomposition of `delta`, (rows, columns), which is left as it is.

    The leading subspace is that of the Gram matrix, or of a Krylov space where that is faster (large matrices, or
    products in few bits), sharpened by subspace iteration on `delta` itself, and within it the decomposition is that
    of a small matrix. It loses at most about 1e-5 of ||D||^2 more than the least. Where float32 would be seen
    in the loss (one dominant value, a steep spectrum, or next to nothing lost) the Gram matrix is made in float64.

    Args:
        rank: at least 1; one beyond the short side is that side.
        energy: ||D||^2, summed from the entries; not 0.
    """
    rank = min(rank, *delta.shape)
    if rank == min(delta.shape):
        return _within(_on_short_side(delta, torch.eye(rank, device=delta.device)), energy, workspace)
    found = _within(_leading(delta, rank, energy, workspace), energy, workspace)
    if delta.dtype == torch.float32 and delta.device.type != "mps" and _is_coarse(found):
        exact = _on_short_side(delta, _vectors(_gram64(_wide(delta)), rank))
        found = _within(exact.sharpened(), energy, workspace)
    return found


@dataclass(frozen=True)
class FactorisationCost:
    """How the factors of a matrix are found ("gram", "krylov", "rough"), and what that takes: about so much."""

    way: str
    seconds: float
    memory: float


def factorisation_cost(rows: int, columns: int, rank: int, device: torch.device) -> FactorisationCost:
    """Of `factors`, and of measuring what they lose before and after they are rounded: seconds, bytes."""
    side = min(rows, columns)
    rank, known = min(rank, side), device_rates(device)
    way, seconds = _cheapest(rows, columns, rank, known)
    rest = (4 + 2 + 4) * rows * columns * rank / known.symmetric  # sharpening, projection, two residuals
    if way == "gram":
        return FactorisationCost(way, (seconds if rank < side else 0.0) + rest, 4.0 * (rows * columns + 4.0 * side**2))
    space = min(rank + MOST_BEYOND, side)
    square = rows * columns / 4 + side**2 if way == "rough" else 0.0
    return FactorisationCost(way, seconds + rest, 4.0 * (rows * columns + square + space * (side + space)))


def _cheapest(rows: int, columns: int, rank: int, known: DeviceRates) -> tuple[str, float]:
    """The way to the leading directions, and its seconds."""
    gram_ = gram_and_vectors_seconds(rows, columns, known)
    if fills_short_side(min(rows, columns), rank):
        return "gram", gram_
    once = krylov_seconds(rows, columns, rank, known)
    ways = {"gram": gram_, "krylov": TIGHTNESS * once}
    if known.rounded:
        ways["rough"] = ROUGHNESS * once
    return min(ways.items(), key=lambda item: item[1])


def residual_energy(delta: Tensor, left: Tensor, right: Tensor, workspace: Workspace) -> float:
    """||delta - left right||^2, some rows at a time; the factors may be of any dtype."""
    left, right = left.to(delta.dtype), right.to(delta.dtype)
    step = max(1, _ENTRIES // delta.shape[1])
    parts = []
    for first in range(0, delta.shape[0], step):
        rows = delta[first : first + step]
        rest = workspace.empty("residual", rows.shape, delta.dtype)
        torch.addmm(rows, left[first : first + step], right, alpha=-1, out=rest)
        parts.append(energy_of(rest))
    return math.fsum(parts)


def _is_coarse(found: Factors) -> bool:
    first, last = found.values[0] ** 2, found.values[-1] ** 2
    return first > DOMINANT * found.energy or last < RESOLUTION * first or found.lost < SMALL_LOSS * found.energy


def _wide(delta: Tensor) -> Tensor:
    return delta if delta.shape[0] <= delta.shape[1] else delta.T


def _on_short_side(delta: Tensor, basis: Tensor) -> Subspace:
    wide = _wide(delta)
    return Subspace.of(wide, basis.to(delta.dtype), is_delta=wide is delta)


def _gram64(wide: Tensor) -> Tensor:
    """D D' in float64, through so many columns at a time."""
    out = torch.zeros(wide.shape[0], wide.shape[0], dtype=torch.float64, device=wide.device)
    for part in torch.split(wide, _COLUMNS, dim=1):
        double = part.double()
        out.addmm_(double, double.T)
    return out


def _leading(delta: Tensor, rank: int, energy: float, workspace: Workspace) -> Subspace:
    """The leading singular subspace, of either side."""
    way, _ = _cheapest(delta.shape[0], delta.shape[1], rank, device_rates(delta.device))
    found = None
    if way == "rough" and delta.dtype == torch.float32:
        solver = Krylov(workspace, tolerance=ROUGH, seed=0, few_bits=True)
        rough = _on_short_side(delta, solver.directions(delta, energy, energy, (rank,)))
        found = rough.settled(gain=MOST_GAIN * energy, most=MOST_TURNS)
    elif way != "gram":
        solver = Krylov(workspace, tolerance=TIGHT, seed=0)
        found = _on_short_side(delta, solver.directions(delta, energy, energy, (rank,))).sharpened()
    if found is None or found.basis.shape[1] < rank:
        found = _on_short_side(delta, _vectors(gram_matrix(delta, workspace), rank)).sharpened()
    return found


def _vectors(lower: Tensor, rank: int) -> Tensor:
    """The leading eigenvectors of a Gram matrix, the largest first.

    All of them are found: MKL does that as fast as scipy's LAPACK finds the leading ones (2048 x 2048, one thread: 1 s
    and 1.2), and brings no threads of its own into the way of others.
    """
    return eigen.eigenvectors(lower)[1].flip(1)[:, :rank]


def _within(space: Subspace, energy: float, workspace: Workspace) -> Factors:
    """The best factors of which one side lies in the subspace: the decomposition of Q'D, which is small."""
    energies, turn = eigen.eigenvectors(_square(space.projected).cpu())
    values = energies.flip(0).clamp_(min=0).sqrt_()
    turn = turn.flip(1).to(space.projected)
    roots = values.sqrt().to(space.projected)
    good = (values > torch.finfo(space.matrix.dtype).eps * values[0]).to(space.projected.device)
    near = torch.where(good, (space.basis @ turn) * roots, 0.0)
    far = torch.where(good[:, None], (turn.T @ space.projected) / roots.clamp(min=1e-30)[:, None], 0.0)
    left, right = (near, far) if space.is_delta else (far.T, near.T)
    delta = space.matrix if space.is_delta else space.matrix.T
    lost = residual_energy(delta, left, right, workspace)
    return Factors(left, right, tuple(values.tolist()), energy, lost)


def _square(projected: Tensor) -> Tensor:
    exact = projected.cpu().double() if projected.device.type == "mps" else projected.double()
    return exact @ exact.T
