"""The leading singular values, by block Krylov iteration."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from deltarank.spectra import eigen as eigen
from deltarank.spectra.cost_model import COARSE, device_rates, is_square_cheaper
from deltarank.spectra.int8_gram import int8_gram_operator
from deltarank.spectra.krylov_space import KrylovSpace
from deltarank.spectra.operator import Operator, ProductOperator, bfloat16_operator
from deltarank.spectra.rounding_bias import expected_energy_loss
from deltarank.spectra.solver import LeadingValues
from deltarank.spectra.workspace import Workspace

DOMINANT = 0.25
"""If one value has this share of the energy or more, its rounding in few bits would drown the others."""

MOST_BLURRED = 0.5
"""Of the tolerance, that few bits may use up."""

FARTHEST = 1.5
"""Strides that are foreseen at a time."""

LEAST_BEYOND = 96
MOST_BEYOND = 3072
"""A spectrum that has not settled this many dimensions past the rank is left as it is: an upper bound of the loss."""


def fills_short_side(side: int, rank: int) -> bool:
    """Whether a Krylov space would fill most of the short side, so that there is nothing to iterate on."""
    return side <= 2 * rank + 2 * LEAST_BEYOND


class Krylov:
    """Block Krylov iteration on D D' (Musco and Musco 2015) with small blocks (Chen, Epperly, Meyer and Musco 2025).

    The space spanned by X, (D D') X, (D D')^2 X, ... is grown block by block until the cosine distance at every asked
    rank is expected to move by less than `tolerance`. Directions may be found in few bits where that is fast; the
    energies are measured in the working precision on those directions: the loss is overstated, never understated.

    Args:
        few_bits: by default, where the tolerance allows it. Who asks for it below sharpens the directions afterwards.
    """

    name = "krylov"
    resolution = 1e-5

    def __init__(self, workspace: Workspace, *, tolerance: float, seed: int, few_bits: bool | None = None) -> None:
        self._workspace = workspace
        self._tolerance = tolerance
        self._seed = seed
        self._few_bits = tolerance >= COARSE if few_bits is None else few_bits

    def leading(self, delta: Tensor, energy: float, whole: float, ranks: tuple[int, ...]) -> LeadingValues:
        wide = delta if delta.shape[0] <= delta.shape[1] else delta.T
        return _measured(wide, self.directions(delta, energy, whole, ranks), min(max(ranks), wide.shape[0]))

    def directions(self, delta: Tensor, energy: float, whole: float, ranks: tuple[int, ...]) -> Tensor:
        """(short side, k): orthonormal, the largest Ritz value first; k is max(ranks), or less if D has no more."""
        wide = delta if delta.shape[0] <= delta.shape[1] else delta.T
        rank = min(max(ranks), wide.shape[0])
        asked = _Asked([r for r in ranks if r <= rank] or [rank], whole - energy, whole)
        operator = self._operator(wide, energy, rank)
        energies, found = self._grown(operator, wide.dtype, asked).ritz(rank)
        if operator.noise and not self._is_good(operator, energies, asked):
            _, found = self._grown(ProductOperator(wide, wide.dtype), wide.dtype, asked).ritz(rank)
        return found

    def _operator(self, wide: Tensor, energy: float, rank: int) -> Operator:
        if not self._few_bits or wide.dtype != torch.float32:
            return ProductOperator(wide, wide.dtype)
        square = None
        if is_square_cheaper(wide.shape[0], wide.shape[1], rank, device_rates(wide.device)):
            square = int8_gram_operator(wide, energy, self._workspace)
        return square or bfloat16_operator(wide, energy, self._workspace)

    def _is_good(self, operator: Operator, energies: Tensor, asked: _Asked) -> bool:
        """Whether directions in few bits will do: by how much the losses are overstated is known from the spectrum."""
        blur = MOST_BLURRED * max(self._tolerance, COARSE)
        return not asked.is_dominated(energies) and asked.blur(energies, operator) <= blur

    def _grown(self, operator: Operator, working: torch.dtype, asked: _Asked) -> KrylovSpace:
        """Until the losses have settled, or a dominant value shows."""
        settling = _Settling(asked, operator.share * self._tolerance, stride=operator.stride)
        most = min(asked.rank + MOST_BEYOND, operator.side)
        space = KrylovSpace(operator, working, self._workspace, seed=self._seed, most=most)
        while space.expand():
            if space.size >= settling.next_look:
                energies = space.ritz_energies(is_last=settling.is_near)
                if settling.done(space.size, energies) or (operator.noise and asked.is_dominated(energies)):
                    break
            space.turn()
        return space


def _measured(wide: Tensor, basis: Tensor, rank: int) -> LeadingValues:
    """Singular values of the projection of `wide` on `basis`, (side, k <= rank): lower bounds of its own.

    Where the space ended before `rank`, D has no more to give but rounding, and the lower bounds are zeros.
    """
    projected = basis.T @ wide
    energies, turn = eigen.eigenvectors((projected @ projected.T).cpu().double())
    turned = turn.flip(1).to(basis)
    values = torch.zeros(rank, dtype=torch.float64)
    values[: len(energies)] = energies.flip(0).clamp_(min=0).sqrt_()
    return LeadingValues(
        values,
        complete=rank == wide.shape[0],
        basis=lambda count: basis @ turned[:, :count],
    )


@dataclass(frozen=True)
class _Asked:
    """The ranks at which a loss is asked for, as a share of `whole`, of which `gone` was taken out of D before."""

    ranks: list[int]
    gone: float
    whole: float

    @property
    def rank(self) -> int:
        """The largest of them."""
        return max(self.ranks)

    def distances(self, energies: Tensor) -> Tensor:
        """The cosine distance at each rank, if these were the energies."""
        kept = (energies.cumsum(0)[torch.tensor(self.ranks) - 1] + self.gone) / self.whole
        return 1 - kept.clamp(0, 1).sqrt()

    def blur(self, energies: Tensor, operator: Operator) -> float:
        """The largest cosine distance by which the operator's noise is expected to overstate a loss.

        Of a Krylov space the energies past the rank are only sketches of the true ones, and the rest is unknown: it is
        taken as spread evenly over the dimensions that are left.
        """
        left = operator.side - len(energies)
        rest = max(self.whole - self.gone - float(energies.sum()), 0.0) / max(left, 1)
        mixed = [expected_energy_loss(energies, r, operator.noise, others=left, other=rest) for r in self.ranks]
        kept = (energies.cumsum(0)[torch.tensor(self.ranks) - 1] + self.gone) / self.whole
        return float((kept.sqrt() - (kept - torch.tensor(mixed) / self.whole).clamp(min=0).sqrt()).max())

    def is_dominated(self, energies: Tensor) -> bool:
        return float(energies[0]) > DOMINANT * (self.whole - self.gone)


class _Settling:
    """Foresees how far the losses still have to fall from how fast they fell, and where they will have settled.

    Ritz energies rise to the true ones about geometrically in the size n of the space: the slopes between three looks
    give the ratio q of the losses' slope b q^(n - n0), and that the rest, b q^(n - n0) / -log q.
    """

    def __init__(self, asked: _Asked, tolerance: float, *, stride: int) -> None:
        self._asked = asked
        self._tolerance = tolerance
        self._stride = stride
        self._looks: list[tuple[int, Tensor]] = []
        self.next_look = asked.rank + LEAST_BEYOND
        self.is_near = False
        """Whether the next look is expected to be the last."""

    def done(self, size: int, energies: Tensor) -> bool:
        self._looks.append((size, self._asked.distances(energies)))
        self.next_look = size + self._stride
        if len(self._looks) < 3:
            return False
        rest, decline = self._foreseen()
        if bool((rest <= self._tolerance).all()):
            return True
        missing = float(((rest / self._tolerance).clamp(min=1.0).log() / decline).max())
        farthest = FARTHEST * self._stride
        self.is_near = missing <= farthest
        self.next_look = size + math.ceil(min(farthest, missing))
        return False

    def _foreseen(self) -> tuple[Tensor, Tensor]:
        """At each rank: what is left of the fall, and -log q."""
        (n1, first), (n2, second), (n3, third) = self._looks[-3:]
        before, last = (first - second) / (n2 - n1), (second - third).clamp(min=0) / (n3 - n2)
        ratio = (last / before.clamp(min=1e-12)).clamp(1e-6, 0.9)
        decline = -ratio.log() / ((n3 - n1) / 2)
        return last * (-decline * (n3 - n2) / 2).exp() / decline, decline
