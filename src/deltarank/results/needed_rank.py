"""The smallest rank that loses at most so much of several deltas."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from deltarank.results.matrix import Loss, MatrixResult

ERROR_STEPS: tuple[float, ...] = (0.5, 0.3, 0.2, 0.1, 0.05, 0.01)
"""The relative errors for which results.json states the rank that is needed."""


class NeededRank:
    """Finds the first rank at which sqrt(sum ||D - D_r||^2 / sum ||D||^2) over several matrices is at most x.

    At ranks that were measured it uses their losses. Between them, up to the rank to which the singular values of all
    matrices are stored, ||D_r||^2 is the sum of their squares (Eckart and Young 1936).
    """

    def __init__(self, matrices: Sequence[MatrixResult], losses: Sequence[Loss], energy: float) -> None:
        self._matrices = [m for m in matrices if m.energy > 0]
        self._losses = losses
        self._energy = energy
        self._errors: list[tuple[int, float]] | None = None

    def at_most(self, max_error: float) -> int | None:
        """The smallest rank with this relative error or less; 0 if nothing changed; None if it is above those known."""
        if not self._losses:
            return None
        if self._energy <= 0:
            return 0
        if self._errors is None:
            self._errors = sorted({**dict(self._between()), **{x.rank: x.relative_error for x in self._losses}}.items())
        return next((rank for rank, error in self._errors if error <= max_error), None)

    def _between(self) -> Iterator[tuple[int, float]]:
        """The relative error at each rank to which all spectra are known, from the singular values."""
        lost = self._energy
        for rank in range(self._known_to()):
            values = (m.singular_values[rank] for m in self._matrices if rank < len(m.singular_values))
            lost -= math.fsum(value * value for value in values)
            yield rank + 1, math.sqrt(max(lost, 0.0) / self._energy)

    def _known_to(self) -> int:
        """A matrix whose values are all stored is known at each rank."""
        cut = [len(m.singular_values) for m in self._matrices if len(m.singular_values) < m.max_rank]
        return min(cut) if cut else max((m.max_rank for m in self._matrices), default=0)
