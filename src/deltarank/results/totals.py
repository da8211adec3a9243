"""Sums over several matrices.

Ratios are computed late: a total adds the energies of its matrices and divides once. Percentages are never averaged.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from deltarank.results.codec import Count
from deltarank.results.matrix import ActivationLoss, Loss, MatrixResult, loss_at
from deltarank.results.needed_rank import ERROR_STEPS, NeededRank


@dataclass(frozen=True)
class Total:
    """Several matrices taken together, as if their deltas were one long vector.

    matrices         how many; `entries` their weights
    energy           sum of ||D||^2; `base_energy` of ||W0||^2
    rounding_energy  the part of `energy` that storage rounding alone explains; None if it is unknown for a matrix
    activation_loss  sums over the matrices that have one; None if none has
    """

    matrices: int
    entries: int
    energy: float
    base_energy: float
    rounding_energy: float | None
    losses: tuple[Loss, ...]
    activation_loss: ActivationLoss | None
    _needed: NeededRank = field(repr=False, compare=False)

    @classmethod
    def of(cls, matrices: Iterable[MatrixResult]) -> Self:
        """Adds the energies of the matrices that have losses, and divides once."""
        rows = [m for m in matrices if m.has_losses]
        energy = math.fsum(m.energy for m in rows)
        losses = _add_losses(rows, energy)
        floors = [m.rounding_floor * m.energy for m in rows if m.rounding_floor is not None]
        return cls(
            matrices=len(rows),
            entries=sum(m.entries for m in rows),
            energy=energy,
            base_energy=math.fsum(m.base_energy for m in rows),
            rounding_energy=math.fsum(floors) if len(floors) == len(rows) else None,
            losses=losses,
            activation_loss=_add_activation_losses(rows),
            _needed=NeededRank(rows, losses, energy),
        )

    @property
    def relative_norm(self) -> float | None:
        """||D|| / ||W0|| over all of them; None if it is not finite."""
        ratio = self.energy / self.base_energy if self.base_energy > 0 else math.inf
        return math.sqrt(ratio) if math.isfinite(ratio) else None

    @property
    def rounding_floor(self) -> float | None:
        """The share of the energy that storage rounding alone explains."""
        if self.rounding_energy is None or self.energy <= 0:
            return None
        return self.rounding_energy / self.energy

    def rank_for_error(self, max_error: float) -> int | None:
        """The smallest rank with a relative error ||D - D_r|| / ||D|| of at most `max_error`.

        0 if nothing changed; None if the rank is higher than those that were measured.
        """
        return self._needed.at_most(max_error)

    def loss(self, rank: int) -> Loss:
        """Raises KeyError if this rank was not measured."""
        return loss_at(self.losses, rank)


def _add_losses(rows: Sequence[MatrixResult], energy: float) -> tuple[Loss, ...]:
    if not rows:
        return ()
    entries = sum(m.entries for m in rows)
    lost: dict[int, list[float]] = {loss.rank: [] for loss in rows[0].losses}
    for row in rows:
        for loss in row.losses:
            lost[loss.rank].append(loss.energy_lost * row.energy)
    return tuple(
        Loss.from_energy(rank, lost=math.fsum(parts), total=energy, entries=entries) for rank, parts in lost.items()
    )


def _add_activation_losses(rows: Sequence[MatrixResult]) -> ActivationLoss | None:
    """Sums over all inputs of all matrices, divided once. `tokens` is the largest number of a matrix."""
    found = [row.activation_loss for row in rows if row.activation_loss is not None]
    if not found:
        return None
    energies = [each.energy * each.tokens for each in found]
    errors = [
        math.fsum(lost * energy for lost, energy in zip(at_rank, energies, strict=True))
        for at_rank in zip(*(each.lost for each in found), strict=True)
    ]
    return ActivationLoss.from_sums(max(each.tokens for each in found), math.fsum(energies), errors)


@dataclass(frozen=True)
class Totals:
    """The totals of a run: all measured matrices, and each module's."""

    whole: Total
    by_module: Mapping[str, Total]

    @classmethod
    def of(cls, matrices: Sequence[MatrixResult]) -> Self:
        modules: dict[str, list[MatrixResult]] = {}
        for matrix in matrices:
            modules.setdefault(matrix.module, []).append(matrix)
        return cls(Total.of(matrices), {name: Total.of(rows) for name, rows in modules.items()})

    @property
    def losses(self) -> tuple[Loss, ...]:
        return self.whole.losses

    def written(self) -> WrittenTotals:
        """As it is written to results.json."""
        return WrittenTotals(
            **vars(_written(self.whole)), by_module={name: _written(total) for name, total in self.by_module.items()}
        )


@dataclass(frozen=True)
class RankForError:
    """The smallest rank with at most this relative error; 0: nothing changed; null: higher than the measured ranks."""

    relative_error: float
    rank: Count | None


@dataclass(frozen=True)
class WrittenTotal:
    """Several matrices taken together.

    matrices        how many; `entries` their weights
    energy          sum of ||D||^2
    relative_norm   ||D|| / ||W0||
    rounding_floor  the share of `energy` that storage rounding alone explains
    losses          at the ranks of the run
    rank_for_error  the smallest rank for each of some relative errors
    activation_loss null without a calibration text
    """

    matrices: Count
    entries: Count
    energy: float
    relative_norm: float | None
    rounding_floor: float | None
    losses: tuple[Loss, ...]
    rank_for_error: tuple[RankForError, ...]
    activation_loss: ActivationLoss | None


@dataclass(frozen=True)
class WrittenTotals(WrittenTotal):
    """All measured matrices taken together, and those of each module."""

    by_module: Mapping[str, WrittenTotal]


def _written(total: Total) -> WrittenTotal:
    return WrittenTotal(
        matrices=total.matrices,
        entries=total.entries,
        energy=total.energy,
        relative_norm=total.relative_norm,
        rounding_floor=total.rounding_floor,
        losses=total.losses,
        rank_for_error=tuple(RankForError(x, total.rank_for_error(x)) for x in ERROR_STEPS),
        activation_loss=total.activation_loss,
    )
