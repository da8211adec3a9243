"""How much of each spectrum is stored: less if there are many matrices, so that the file stays readable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

LEAST_VALUES, MOST_VALUES = 64, 1_000_000
LEAST_POINTS, POINTS, MOST_POINTS = 12, 40, 400_000
FEWEST_VALUES = 16

_BYTES = (2_000, 25, 40)
"""Bytes of JSON for a matrix without its spectrum, for a singular value, for a point of the curve; rounded up."""


@dataclass(frozen=True)
class SpectrumDetail:
    """What is stored of one matrix.

    values    the number of singular values, largest first; more for a matrix of low rank (`values_of`)
    points    the number of points of its curve, evenly spaced on a log axis
    """

    values: int
    points: int

    @classmethod
    def of_run(cls, matrices: int, ranks: Sequence[int]) -> Self:
        """All values up to the highest rank, at least 64; fewer, at least 16, if the run would store over a million."""
        number = max(matrices, 1)
        wished = max(*ranks, LEAST_VALUES)
        return cls(
            max(min(wished, MOST_VALUES // number), FEWEST_VALUES),
            max(min(POINTS, MOST_POINTS // number), LEAST_POINTS),
        )

    def values_of(self, signal_rank: int | None, max_rank: int, ranks: Sequence[int]) -> int:
        """For one matrix. A low-rank delta stores all values above the noise edge, and one more, for the verdict."""
        is_low = signal_rank is not None and signal_rank <= max_rank / 2
        return max(self.values, min((signal_rank or 0) + 1, max(*ranks, LEAST_VALUES) + 1) if is_low else 0)

    @property
    def nbytes(self) -> int:
        """Disk space, counted twice: the records of the run folder are kept until the results are written."""
        fixed, value, point = _BYTES
        return 2 * (fixed + value * self.values + point * self.points)
