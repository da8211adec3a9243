"""What storage rounding explains of the loss at a rank, over several matrices."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from deltarank.results.formatting import percent
from deltarank.results.matrix import Loss, Outcome

SMALLEST_ROUNDING = 0.05
"""A smaller share of a loss is not mentioned."""

SMALLEST_LOSS = 0.005
"""Of a loss of a smaller share of the change, nothing is said."""

ABOVE_EDGE = "what storage rounding cannot explain in the matrices (the energy above the noise edge)"
"""The energy of singular values that are larger than those of rounding errors can be."""


@dataclass(frozen=True)
class NoiseShares:
    """Storage rounding at one rank r.

    rounding_lost  at least about this share of ||D - D_r||^2 is storage rounding; 0 if it is not known
    signal_kept    the share kept of the energy of the singular values above the noise edge; None if that is not known
                   for some matrix, or if there are none
    lost           the share of the change that is lost, ||D - D_r||^2 / ||D||^2
    """

    rounding_lost: float
    signal_kept: float | None
    lost: float = 1.0

    @property
    def is_below_edge(self) -> bool:
        """Whether a notable part of the change is lost, and all of it has singular values below the noise edge."""
        return self.signal_kept == 1 and self.lost >= SMALLEST_LOSS

    @property
    def sentences(self) -> tuple[str, ...]:
        """Empty where rounding is a small part of the loss as far as is known, or little is lost."""
        return self.sentences_on("what is lost")

    def sentences_on(self, what: str) -> tuple[str, ...]:
        """As `sentences`, which call the loss `what`: "what is truncated"."""
        if self.is_below_edge:
            return (f"All of {what} is small enough to be storage rounding (below the noise edge).",)
        if self.rounding_lost < SMALLEST_ROUNDING or self.lost < SMALLEST_LOSS:
            return ()
        rounding = f"By estimate, at least {percent(self.rounding_lost)} of {what} is storage rounding."
        if self.signal_kept is None:
            return (rounding,)
        return rounding, f"Of {ABOVE_EDGE}, {percent(self.signal_kept)} is kept."


class Measured(Protocol):
    """A matrix as `MatrixResult` describes it."""

    @property
    def outcome(self) -> Outcome: ...
    @property
    def energy(self) -> float: ...
    @property
    def rounding_floor(self) -> float | None: ...
    @property
    def noise_edge(self) -> float | None: ...
    @property
    def signal_share(self) -> float | None: ...
    def loss(self, rank: int) -> Loss: ...


def noise_shares(matrices: Iterable[Measured], rank: int) -> NoiseShares:
    """Adds the energies of the measured matrices and divides once. Rank r has to be measured."""
    rows = [m for m in matrices if m.outcome is Outcome.MEASURED and m.energy > 0]
    lost = math.fsum(m.loss(rank).energy_lost * m.energy for m in rows)
    rounding = math.fsum(_rounding_lost(m, rank) for m in rows)
    energy = math.fsum(m.energy for m in rows)
    share = lost / energy if energy > 0 else 0.0
    return NoiseShares(rounding / lost if lost > 0 else 0.0, _signal_kept(rows, rank), share)


def _rounding_lost(matrix: Measured, rank: int) -> float:
    """The least energy of the rounding errors in D - D_r, if their energy is that of the rounding floor.

    D - D_r = (I - P) D (I - Q) with projections of rank r. They remove at most 2 r s1^2 of the energy of the errors,
    whose largest singular value s1 is at most the noise edge. The floor overstates the errors where the change is
    smaller than half a unit in the last place.
    """
    if not matrix.rounding_floor or matrix.noise_edge is None:
        return 0.0
    least = matrix.rounding_floor * matrix.energy - 2 * rank * matrix.noise_edge**2
    return min(max(least, 0.0), matrix.loss(rank).energy_lost * matrix.energy)


def _signal_kept(rows: Iterable[Measured], rank: int) -> float | None:
    kept = whole = 0.0
    for matrix in rows:
        if matrix.signal_share is None:
            return None
        kept += min(matrix.loss(rank).energy_kept, matrix.signal_share) * matrix.energy
        whole += matrix.signal_share * matrix.energy
    return kept / whole if whole > 0 else None
