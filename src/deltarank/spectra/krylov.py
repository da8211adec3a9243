"""The leading singular values, by block Krylov iteration."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from deltarank.spectra import eigen as eigen
from deltarank.spectra.cost_model import LOW_PRECISION_TOLERANCE, device_rates, is_gram_cheaper
from deltarank.spectra.int8_gram import int8_gram_operator
from deltarank.spectra.krylov_space import KrylovSpace
from deltarank.spectra.operator import Operator, ProductOperator, product_operator
from deltarank.spectra.rounding_bias import expected_energy_loss
from deltarank.spectra.solver import LeadingValues
from deltarank.spectra.workspace import Workspace

DOMINANT = 0.25
"""If one value has this share of the energy or more, its rounding in low precision would hide the other values."""

MAX_ROUNDING_BIAS = 0.5
"""The share of the tolerance that the error of low precision may use."""

MAX_INTERVALS_AHEAD = 1.5
"""The next convergence check is at most this many check intervals ahead."""

MIN_EXTRA_DIMENSIONS = 96
MAX_EXTRA_DIMENSIONS = 3072
"""Dimensions beyond the rank after which iteration stops without convergence: the loss is then an upper bound."""


def fills_short_side(side: int, rank: int) -> bool:
    """Whether a Krylov space would fill most of the short side, so that there is nothing to iterate on."""
    return side <= 2 * rank + 2 * MIN_EXTRA_DIMENSIONS


class Krylov:
    """Block Krylov iteration on D D' (Musco and Musco 2015) with small blocks (Chen, Epperly, Meyer and Musco 2025).

    The space spanned by X, (D D') X, (D D')^2 X, ... grows block by block until the cosine distance at every requested
    rank is expected to change by less than `tolerance`. Directions may be found in low precision where the device is
    fast at it; energies are measured in the working precision on those directions. So the loss is overstated, never
    understated.

    Args:
        low_precision: whether directions may be found in low precision; by default, where the tolerance allows it.
            A caller that sets it for a tighter tolerance has to refine the directions.
    """

    name = "krylov"
    resolution = 1e-5

    def __init__(self, workspace: Workspace, *, tolerance: float, seed: int, low_precision: bool | None = None) -> None:
        self._workspace = workspace
        self._tolerance = tolerance
        self._seed = seed
        self._low_precision = tolerance >= LOW_PRECISION_TOLERANCE if low_precision is None else low_precision

    def leading(self, delta: Tensor, energy: float, whole: float, ranks: tuple[int, ...]) -> LeadingValues:
        wide = delta if delta.shape[0] <= delta.shape[1] else delta.T
        return _measure_on_basis(wide, self.directions(delta, energy, whole, ranks), min(max(ranks), wide.shape[0]))

    def directions(self, delta: Tensor, energy: float, whole: float, ranks: tuple[int, ...]) -> Tensor:
        """(short side, k): orthonormal, the largest Ritz value first; k is max(ranks), or less if D has lower rank."""
        wide = delta if delta.shape[0] <= delta.shape[1] else delta.T
        rank = min(max(ranks), wide.shape[0])
        request = _Request([r for r in ranks if r <= rank] or [rank], whole - energy, whole)
        operator = self._make_operator(wide, energy, rank)
        energies, directions = self._grow_space(operator, wide.dtype, request).ritz(rank)
        if operator.noise and not self._is_precise_enough(operator, energies, request):
            _, directions = self._grow_space(ProductOperator(wide, wide.dtype), wide.dtype, request).ritz(rank)
        return directions

    def _make_operator(self, wide: Tensor, energy: float, rank: int) -> Operator:
        if not self._low_precision or wide.dtype != torch.float32:
            return ProductOperator(wide, wide.dtype)
        gram = None
        if is_gram_cheaper(wide.shape[0], wide.shape[1], rank, device_rates(wide.device)):
            gram = int8_gram_operator(wide, energy, self._workspace)
        return gram or product_operator(wide, energy, self._workspace)

    def _is_precise_enough(self, operator: Operator, energies: Tensor, request: _Request) -> bool:
        """Whether low precision overstates the losses by little enough, which the spectrum tells."""
        limit = MAX_ROUNDING_BIAS * max(self._tolerance, LOW_PRECISION_TOLERANCE)
        return not request.is_dominated(energies) and request.rounding_bias(energies, operator) <= limit

    def _grow_space(self, operator: Operator, working: torch.dtype, request: _Request) -> KrylovSpace:
        """Until the losses have converged, or a dominant value shows in low precision."""
        tolerance = operator.tolerance_share * self._tolerance
        convergence = _Convergence(request, tolerance, check_interval=operator.check_interval)
        max_size = min(request.max_rank + MAX_EXTRA_DIMENSIONS, operator.side)
        space = KrylovSpace(operator, working, self._workspace, seed=self._seed, max_size=max_size)
        while space.expand():
            if space.size >= convergence.next_check:
                energies = space.ritz_energies(with_vectors=convergence.is_near)
                is_done = convergence.check(space.size, energies)
                if is_done or (operator.noise and request.is_dominated(energies)):
                    break
            space.make_next_block()
        return space


def _measure_on_basis(wide: Tensor, basis: Tensor, rank: int) -> LeadingValues:
    """Singular values of the projection of `wide` on `basis`, (side, k <= rank), which are lower bounds of its own.

    Where the basis has fewer than `rank` columns, the rest of D is only rounding, and the lower bounds are zeros.
    """
    projected = basis.T @ wide
    energies, rotation = eigen.eigenvectors((projected @ projected.T).cpu().double())
    rotation = rotation.flip(1).to(basis)
    values = torch.zeros(rank, dtype=torch.float64)
    values[: len(energies)] = energies.flip(0).clamp_(min=0).sqrt_()
    return LeadingValues(
        values,
        complete=rank == wide.shape[0],
        basis=lambda count: basis @ rotation[:, :count],
    )


@dataclass(frozen=True)
class _Request:
    """The ranks at which losses are needed, as shares of `whole`, the energy of D before `removed` was taken out."""

    ranks: list[int]
    removed: float
    whole: float

    @property
    def max_rank(self) -> int:
        return max(self.ranks)

    def _shares_kept(self, energies: Tensor) -> Tensor:
        return (energies.cumsum(0)[torch.tensor(self.ranks) - 1] + self.removed) / self.whole

    def cosine_distances(self, energies: Tensor) -> Tensor:
        """The cosine distance at each rank, if these were the energies."""
        return 1 - self._shares_kept(energies).clamp(0, 1).sqrt()

    def rounding_bias(self, energies: Tensor, operator: Operator) -> float:
        """The largest cosine distance by which the operator's noise is expected to overstate a loss.

        The Ritz values beyond the rank only approximate the true energies, and the rest is unknown: it is assumed to be
        spread evenly over the remaining dimensions.
        """
        others = operator.side - len(energies)
        other = max(self.whole - self.removed - float(energies.sum()), 0.0) / max(others, 1)
        losses = [expected_energy_loss(energies, r, operator.noise, others=others, other=other) for r in self.ranks]
        kept = self._shares_kept(energies)
        return float((kept.sqrt() - (kept - torch.tensor(losses) / self.whole).clamp(min=0).sqrt()).max())

    def is_dominated(self, energies: Tensor) -> bool:
        return float(energies[0]) > DOMINANT * (self.whole - self.removed)


class _Convergence:
    """Extrapolates how far the losses still have to fall, and at which size of the space they will have converged.

    Ritz values rise to the true energies about geometrically in the size n of the space: the slopes between three
    checks give the ratio q of the losses' slope b q^(n - n0), and the remaining fall b q^(n - n0) / -log q.
    """

    def __init__(self, request: _Request, tolerance: float, *, check_interval: int) -> None:
        self._request = request
        self._tolerance = tolerance
        self._check_interval = check_interval
        self._checks: list[tuple[int, Tensor]] = []
        self.next_check = request.max_rank + MIN_EXTRA_DIMENSIONS
        self.is_near = False
        """Whether the next check is expected to be the last."""

    def check(self, size: int, energies: Tensor) -> bool:
        """Whether the losses have converged. Otherwise sets `next_check`."""
        self._checks.append((size, self._request.cosine_distances(energies)))
        self.next_check = size + self._check_interval
        if len(self._checks) < 3:
            return False
        remaining, decay = self._extrapolate()
        if bool((remaining <= self._tolerance).all()):
            return True
        dimensions = float(((remaining / self._tolerance).clamp(min=1.0).log() / decay).max())
        most = MAX_INTERVALS_AHEAD * self._check_interval
        self.is_near = dimensions <= most
        self.next_check = size + math.ceil(min(most, dimensions))
        return False

    def _extrapolate(self) -> tuple[Tensor, Tensor]:
        """At each rank: the remaining fall of the cosine distance, and -log q."""
        (n1, first), (n2, second), (n3, third) = self._checks[-3:]
        before, last = (first - second) / (n2 - n1), (second - third).clamp(min=0) / (n3 - n2)
        ratio = (last / before.clamp(min=1e-12)).clamp(1e-6, 0.9)
        decay = -ratio.log() / ((n3 - n1) / 2)
        return last * (-decay * (n3 - n2) / 2).exp() / decay, decay
