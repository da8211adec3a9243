"""What a solver is: a matrix in, leading singular values and a basis of their subspace out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class LeadingValues:
    """Singular values of a matrix, largest first, in float64 on the CPU.

    values    (k,), each at most the true one up to rounding
    complete  these are all there are
    basis     given k' <= k: (short side, k') orthonormal columns that span the leading singular subspace of the short
              side, on the matrix's device. Valid until the solver runs again
    """

    values: Tensor
    complete: bool
    basis: Callable[[int], Tensor]


class Solver(Protocol):
    """Finds singular values.

    resolution  the share of the largest energy under which this solver's energies are rounding errors
    """

    name: str
    resolution: float

    def leading(self, delta: Tensor, energy: float, whole: float, ranks: tuple[int, ...]) -> LeadingValues:
        """At least the first max(ranks) singular values of `delta`, whose ||delta||^2 is `energy`.

        The loss at each of `ranks`, as a share of `whole`, is to be right within the solver's tolerance.
        """
        ...
