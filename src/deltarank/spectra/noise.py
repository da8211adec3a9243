"""The noise edge: the largest singular value that rounding alone would show."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

EPSILON_FLOAT32 = 2.0**-23

ARITHMETIC = 32.0
"""Errors of float32 arithmetic, in units in the last place of D: those of a product B A that was merged, and those of
the solver. The largest found, for ranks up to 64 and relative norms up to 3, was a third of this."""


class RoundingNoise:
    """The energy that errors are expected to have in each row and each column of a delta D = W - W0.

    An error of rounding to a step u is taken as uniform, with variance u^2 / 12. Two kinds add up:

        u = ulp(w)                            W was rounded when it was stored
        u = (eps + ARITHMETIC 2^-23) |d|      the change was rounded to the stored dtype before it was added to W0, and
                                              computed in float32; eps is 2^-mantissa bits
    """

    def __init__(self, *, has_format: bool = False) -> None:
        """has_format: whether a side is quantised, so that the energies of W0 are needed."""
        self.has_format = has_format
        self._rows = 0
        self._largest_row = 0.0
        self._columns: Tensor | None = None
        self._largest_base_row = 0.0
        self._base_columns: Tensor | float = 0.0

    def add_rows(self, rows: int, largest_row: float, columns: Tensor) -> None:
        """Adds some rows of D: how many, the largest energy of one of them, and the energies in their columns."""
        self._rows += rows
        self._largest_row = max(self._largest_row, largest_row)
        self._columns = columns if self._columns is None else self._columns + columns

    def add_base_rows(self, largest_row: float, columns: Tensor) -> None:
        """Adds the same rows of W0: the largest energy of one of them, and the energies in their columns."""
        self._largest_base_row = max(self._largest_base_row, largest_row)
        self._base_columns = columns + self._base_columns

    def edge(self, *, format_error: float = 0.0) -> float:
        """The largest singular value that errors alone would show, in the unit of the weights.

        Independent errors whose variances are v_ij have a spectrum that ends at or below

            sqrt(max_i sum_j v_ij) + sqrt(max_j sum_i v_ij)       (Bandeira and van Handel 2016)

        which for equal variances is sqrt(v) (sqrt(rows) + sqrt(columns)) (Marchenko and Pastur 1967), and never over
        twice the true end. The largest value fluctuates about it by a share of the order of side^(-2/3) (Tracy and
        Widom 1994; Johnstone 2001), so the edge is two such shares above.

        Args:
            format_error: ||W - Q(W)|| / ||W|| of a quantised format. Its steps follow the size of the weights near by,
                so that an entry of W0 has an error of this share of its size.
        """
        if self._columns is None:
            return 0.0
        rows, columns = self._rows, len(self._columns)
        row = self._largest_row + format_error**2 * self._largest_base_row
        largest = row, float((self._columns + format_error**2 * self._base_columns).max())
        margin: float = 1 + 2 * min(rows, columns) ** (-2 / 3)
        return math.fsum(map(math.sqrt, largest)) * margin


def add_base(noises: Sequence[RoundingNoise], bases: Tensor) -> None:
    """Adds the same rows of several W0, (n, rows, columns), to the noise of each that needs them."""
    if any(noise.has_format for noise in noises):
        rows = torch.linalg.vector_norm(bases, dim=2).amax(1).square().tolist()
        columns = torch.linalg.vector_norm(bases, dim=1).cpu().double().square()
        for noise, row, column in zip(noises, rows, columns, strict=True):
            noise.add_base_rows(row, column)


def add_noise(noises: Sequence[RoundingNoise], powers: Tensor, deltas: Tensor, scratch: Tensor) -> None:
    """Adds the same rows of several deltas, (n, rows, columns), to the noise of each.

    Args:
        powers: the largest powers of two that are not greater than |w|, in the finetune's stored dtype.
        scratch: as `deltas`; is overwritten.
    """
    epsilon = torch.finfo(powers.dtype).eps
    step = epsilon + ARITHMETIC * EPSILON_FLOAT32
    scratch.copy_(powers).square_().mul_(epsilon**2 / 12).addcmul_(deltas, deltas, value=step**2 / 12)
    columns = scratch.sum(1).cpu().double()
    for noise, row, column in zip(noises, scratch.sum(2).amax(1).tolist(), columns, strict=True):
        noise.add_rows(deltas.shape[1], row, column)
