"""A subspace of one side of a delta, sharpened by half steps of subspace iteration from one side to the other."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Subspace:
    """Orthonormal columns that should span leading singular vectors, and what of the matrix lies in their span.

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

    def turned(self) -> Subspace:
        """Half a step: the span of matrix' Q on the other side. It holds as much or more.

        Each half is orthonormalised by itself: a whole step at once would drown the small values in the rounding of
        the large.
        """
        return Subspace.of(self.matrix.T, torch.linalg.qr(self.projected.T).Q, is_delta=not self.is_delta)

    def sharpened(self) -> Subspace:
        """A whole step."""
        return self.turned().turned()

    def settled(self, *, gain: float, most: int) -> Subspace | None:
        """Turned at least once, until that gains `gain` or less in energy; None if it goes on after `most` turns."""
        found = self
        for _ in range(most):
            before, found = found, found.turned()
            if found.energy - before.energy <= gain:
                return found
        return None
