"""A subspace of one side of a delta, refined by half steps of subspace iteration from one side to the other."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Subspace:
    """Orthonormal columns that approximately span leading singular vectors, and the projection of the matrix on them.

    matrix       (m, n): the delta, or its transpose
    basis        Q, (m, k)
    projected    Q' matrix, (k, n)
    is_delta     the matrix is the delta itself: Q spans left singular vectors
    """

    matrix: Tensor
    basis: Tensor
    projected: Tensor
    is_delta: bool

    @classmethod
    def of(cls, matrix: Tensor, basis: Tensor, *, is_delta: bool) -> Subspace:
        return cls(matrix, basis, basis.T @ matrix, is_delta)

    @cached_property
    def energy(self) -> float:
        """||Q' matrix||^2: what an approximation in this span keeps."""
        return float(self.projected.double().square().sum())

    def half_step(self) -> Subspace:
        """The span of matrix' Q on the other side, which keeps at least as much energy.

        Each half step is orthonormalised by itself: rounding in a whole step at once would hide the small values.
        """
        return Subspace.of(self.matrix.T, torch.linalg.qr(self.projected.T).Q, is_delta=not self.is_delta)

    def full_step(self) -> Subspace:
        return self.half_step().half_step()

    def iterate(self, *, gain: float, max_steps: int) -> Subspace | None:
        """Takes half steps until one gains `gain` or less in energy; None if `max_steps` half steps are not enough."""
        space = self
        for _ in range(max_steps):
            before, space = space, space.half_step()
            if space.energy - before.energy <= gain:
                return space
        return None
