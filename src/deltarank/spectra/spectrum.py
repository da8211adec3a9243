"""The singular values of a delta, as far as they are known, and every loss that follows from them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate


@dataclass(frozen=True)
class Level:
    """The energy without the first `start` singular values, measured on D after deflation."""

    start: int
    energy: float


@dataclass(frozen=True)
class Spectrum:
    """Singular values of D, largest first: all of them (`complete`) or the leading ones.

    values    in the unit of the weights
    levels    residual energies; the first is ||D||^2 itself, at start 0
    max_rank  min(rows, columns)
    solver    what found them
    """

    values: tuple[float, ...]
    levels: tuple[Level, ...]
    max_rank: int
    complete: bool
    solver: str

    @property
    def energy(self) -> float:
        """||D||^2."""
        return self.levels[0].energy

    @cached_property
    def _kept(self) -> tuple[float, ...]:
        return (0.0, *accumulate(value * value for value in self.values))

    def lost(self, rank: int) -> float:
        """||D - D_r||^2 (Eckart and Young 1936).

        Computed from the last level that starts at or before the rank, so that numbers of similar size are subtracted:
        ||D||^2 minus what is kept would leave the rounding errors of both.

        Raises:
            ValueError: fewer singular values than `rank` are known.
        """
        if rank >= self.max_rank:
            return 0.0
        if rank > len(self.values):
            raise ValueError(f"rank {rank} was requested, and only {len(self.values)} singular values are known")
        level = next(x for x in reversed(self.levels) if x.start <= rank)  # levels are sorted by start
        return max(level.energy - (self._kept[rank] - self._kept[level.start]), 0.0)

    @property
    def stable_rank(self) -> float | None:
        """||D||^2 / s1^2 (Rudelson and Vershynin 2007), at least 1."""
        return max(self.energy / self.values[0] ** 2, 1.0) if self.values and self.values[0] > 0 else None

    @property
    def effective_rank(self) -> float | None:
        """exp of the entropy of the normalised squared singular values, in nats; None if not all are known.

        (Roy and Vetterli 2007 normalise the values; this is the same measure of the energies.)
        """
        if not self.complete or not self.energy:
            return None
        shares = [value * value / self._kept[-1] for value in self.values]
        return math.exp(-math.fsum(p * math.log(p) for p in shares if p > 0))

    def signal_rank(self, edge: float) -> int | None:
        """The number of singular values above the noise edge; None if all known ones are, and more exist."""
        above = sum(value > edge for value in self.values)
        return above if self.complete or above < len(self.values) else None

    def curve(self, points: int) -> tuple[tuple[int, float], ...]:
        """(rank, energy kept) at about `points` ranks, evenly spaced on a log axis, as far as values are known."""
        if not self.energy:
            return ()
        last = len(self.values)
        ranks = {round(last ** (i / max(points - 1, 1))) for i in range(points)} if last else set()
        return tuple((rank, 1.0 - self.lost(rank) / self.energy) for rank in sorted(ranks))
