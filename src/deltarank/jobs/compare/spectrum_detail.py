"""How much of each spectrum the results keep: of 50,000 matrices less than of 200, so that a file can still be read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

LEAST_VALUES, MOST_VALUES = 64, 1_000_000
LEAST_POINTS, POINTS, MOST_POINTS = 12, 40, 400_000
FEWEST_VALUES = 16

_BYTES = (2_000, 25, 40)
"""Of a matrix without its spectrum, of a singular value, of a point of the curve; as JSON, seen and rounded up."""


@dataclass(frozen=True)
class SpectrumDetail:
    """Of one matrix.

    values    singular values, largest first; more where they stand for a low rank (`values_of`)
    points    of its curve, evenly spaced on a log axis
    """

    values: int
    points: int

    @classmethod
    def of_run(cls, matrices: int, ranks: Sequence[int]) -> Self:
        """All values up to the highest rank, 64 at least, as long as a run keeps a million; then fewer, 16 at least."""
        number = max(matrices, 1)
        wished = max(*ranks, LEAST_VALUES)
        return cls(
            max(min(wished, MOST_VALUES // number), FEWEST_VALUES),
            max(min(POINTS, MOST_POINTS // number), LEAST_POINTS),
        )

    def values_of(self, signal_rank: int | None, max_rank: int, ranks: Sequence[int]) -> int:
        """A low-rank delta keeps what stands above its noise edge: the verdict adds it up."""
        is_low = signal_rank is not None and signal_rank <= max_rank / 4
        return max(self.values, min(signal_rank or 0, max(*ranks, LEAST_VALUES)) if is_low else 0)

    @property
    def nbytes(self) -> int:
        """Room on the disk, twice: the run_folder is there until the results are whole."""
        fixed, value, point = _BYTES
        return 2 * (fixed + value * self.values + point * self.points)
