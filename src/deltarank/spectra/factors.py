"""The best factors of a delta at one rank, from which an adapter is made."""

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
from deltarank.spectra.krylov import MAX_EXTRA_DIMENSIONS, Krylov, fills_short_side
from deltarank.spectra.subspace_iteration import Subspace
from deltarank.spectra.workspace import Workspace

GRAM, KRYLOV, INT8_KRYLOV = "gram", "krylov", "int8 krylov"
"""The methods that find the leading directions."""

SMALL_LOSS = 1e-2
RESOLUTION = 1e-5
"""Energies below this share of the largest are rounding errors in a Gram matrix of float32 entries."""

TIGHT_TOLERANCE = 1e-6
"""The tolerance at which Krylov directions, after one refining step, lose within 1e-6 of the least ||D - D_r||."""

TIGHT_SLOWDOWN = 6.0
"""The time of Krylov iteration at that tolerance, in multiples of that at its usual tolerance."""

INT8_TOLERANCE = 1.5e-5
"""The tolerance for directions found in low precision: below it, only their rounding noise would be left."""

INT8_SLOWDOWN = 1.5
MAX_GAIN = 3e-6
"""Such directions are refined until a half step gains this share of ||D||^2 or less; up to three times that remains."""

MAX_HALF_STEPS = 6

_CHUNK_ENTRIES = 1 << 20
_CHUNK_COLUMNS = 2048


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
    """The truncated singular value decomposition of `delta`, (rows, columns), which is not modified.

    The leading subspace comes from the Gram matrix, or from a Krylov space where that is faster (large matrices, or
    products in low precision), and is refined by subspace iteration on `delta` itself. Within it, the decomposition is
    that of a small matrix. It loses at most about 1e-5 of ||D||^2 more than the least. Where the rounding of float32
    would show in the loss (one dominant value, a steep spectrum, almost no loss), the Gram matrix is made in float64.

    Args:
        rank: at least 1; capped at the short side.
        energy: ||D||^2, summed from the entries; not 0.
    """
    rank = min(rank, *delta.shape)
    if rank == min(delta.shape):
        return _decompose(_on_short_side(delta, torch.eye(rank, device=delta.device)), energy, workspace)
    factors = _decompose(_leading_subspace(delta, rank, energy, workspace), energy, workspace)
    if delta.dtype == torch.float32 and delta.device.type != "mps" and _shows_float32(factors):
        space = _on_short_side(delta, _leading_eigenvectors(_gram_float64(_wide(delta)), rank))
        factors = _decompose(space.full_step(), energy, workspace)
    return factors


@dataclass(frozen=True)
class FactorisationCost:
    """How the factors of a matrix are found ("gram", "krylov", "int8 krylov"), and about how much that takes.

    memory   in bytes
    """

    method: str
    seconds: float
    memory: float


def factorisation_cost(rows: int, columns: int, rank: int, device: torch.device) -> FactorisationCost:
    """The cost of `factorise`, and of measuring the loss before and after the factors are rounded."""
    side = min(rows, columns)
    rank, rates = min(rank, side), device_rates(device)
    method, seconds = _cheapest_method(rows, columns, rank, rates)
    rest = (4 + 2 + 4) * rows * columns * rank / rates.symmetric  # refinement, projection, two residuals
    if method == GRAM:
        return FactorisationCost(
            method, (seconds if rank < side else 0.0) + rest, 4.0 * (rows * columns + 4.0 * side**2)
        )
    space = min(rank + MAX_EXTRA_DIMENSIONS, side)
    gram = rows * columns / 4 + side**2 if method == INT8_KRYLOV else 0.0
    return FactorisationCost(method, seconds + rest, 4.0 * (rows * columns + gram + space * (side + space)))


def _cheapest_method(rows: int, columns: int, rank: int, rates: DeviceRates) -> tuple[str, float]:
    """The method that finds the leading directions soonest, and its seconds."""
    gram = gram_and_vectors_seconds(rows, columns, rates)
    if fills_short_side(min(rows, columns), rank):
        return GRAM, gram
    krylov = krylov_seconds(rows, columns, rank, rates)
    seconds = {GRAM: gram, KRYLOV: TIGHT_SLOWDOWN * krylov}
    if rates.int8_gram:
        seconds[INT8_KRYLOV] = INT8_SLOWDOWN * krylov
    return min(seconds.items(), key=lambda item: item[1])


def residual_energy(delta: Tensor, left: Tensor, right: Tensor, workspace: Workspace) -> float:
    """||delta - left right||^2, some rows at a time. The factors may be of any dtype."""
    left, right = left.to(delta.dtype), right.to(delta.dtype)
    step = max(1, _CHUNK_ENTRIES // delta.shape[1])
    parts = []
    for first in range(0, delta.shape[0], step):
        rows = delta[first : first + step]
        rest = workspace.empty("residual", rows.shape, delta.dtype)
        torch.addmm(rows, left[first : first + step], right, alpha=-1, out=rest)
        parts.append(energy_of(rest))
    return math.fsum(parts)


def _shows_float32(factors: Factors) -> bool:
    """Whether the rounding of float32 could show in the loss."""
    first, last = factors.values[0] ** 2, factors.values[-1] ** 2
    is_dominated, is_steep = first > DOMINANT * factors.energy, last < RESOLUTION * first
    return is_dominated or is_steep or factors.lost < SMALL_LOSS * factors.energy


def _wide(delta: Tensor) -> Tensor:
    return delta if delta.shape[0] <= delta.shape[1] else delta.T


def _on_short_side(delta: Tensor, basis: Tensor) -> Subspace:
    wide = _wide(delta)
    return Subspace.of(wide, basis.to(delta.dtype), is_delta=wide is delta)


def _gram_float64(wide: Tensor) -> Tensor:
    """D D' in float64, some columns at a time."""
    out = torch.zeros(wide.shape[0], wide.shape[0], dtype=torch.float64, device=wide.device)
    for part in torch.split(wide, _CHUNK_COLUMNS, dim=1):
        double = part.double()
        out.addmm_(double, double.T)
    return out


def _leading_subspace(delta: Tensor, rank: int, energy: float, workspace: Workspace) -> Subspace:
    """The leading singular subspace, of either side."""
    method, _ = _cheapest_method(delta.shape[0], delta.shape[1], rank, device_rates(delta.device))
    space = None
    if method == INT8_KRYLOV and delta.dtype == torch.float32:
        solver = Krylov(workspace, tolerance=INT8_TOLERANCE, seed=0, low_precision=True)
        approximate = _on_short_side(delta, solver.directions(delta, energy, energy, (rank,)))
        space = approximate.iterate(gain=MAX_GAIN * energy, max_steps=MAX_HALF_STEPS)
    elif method != GRAM:
        solver = Krylov(workspace, tolerance=TIGHT_TOLERANCE, seed=0)
        space = _on_short_side(delta, solver.directions(delta, energy, energy, (rank,))).full_step()
    if space is None or space.basis.shape[1] < rank:
        space = _on_short_side(delta, _leading_eigenvectors(gram_matrix(delta, workspace), rank)).full_step()
    return space


def _leading_eigenvectors(lower: Tensor, rank: int) -> Tensor:
    """The leading eigenvectors of a Gram matrix, the largest first.

    All eigenvectors are computed: MKL is as fast at that as scipy's LAPACK at the leading ones (2048 x 2048, one
    thread: 1 s and 1.2 s), and does not start threads of its own that compete with ours.
    """
    return eigen.eigenvectors(lower)[1].flip(1)[:, :rank]


def _decompose(space: Subspace, energy: float, workspace: Workspace) -> Factors:
    """The best factors of which one side lies in the subspace: the decomposition of Q' D, which is small."""
    energies, rotation = eigen.eigenvectors(_projected_gram(space.projected).cpu())
    values = energies.flip(0).clamp_(min=0).sqrt_()
    rotation = rotation.flip(1).to(space.projected)
    roots = values.sqrt().to(space.projected)
    is_significant = (values > torch.finfo(space.matrix.dtype).eps * values[0]).to(space.projected.device)
    near = torch.where(is_significant, (space.basis @ rotation) * roots, 0.0)
    far = torch.where(is_significant[:, None], (rotation.T @ space.projected) / roots.clamp(min=1e-30)[:, None], 0.0)
    left, right = (near, far) if space.is_delta else (far.T, near.T)
    delta = space.matrix if space.is_delta else space.matrix.T
    lost = residual_energy(delta, left, right, workspace)
    return Factors(left, right, tuple(values.tolist()), energy, lost)


def _projected_gram(projected: Tensor) -> Tensor:
    exact = projected.cpu().double() if projected.device.type == "mps" else projected.double()
    return exact @ exact.T
