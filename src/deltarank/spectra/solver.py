"""The interface of a solver: leading singular values of a matrix, and a basis of their subspace."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class LeadingValues:
    """Singular values of a matrix, largest first, in float64 on the CPU.

    values    (k,), each at most the true one, up to rounding
    complete  whether these are all singular values
    basis     for k' <= k: (short side, k') orthonormal columns that span the leading singular subspace of the short
              side, on the matrix's device. Valid until the solver runs again
    """

    values: Tensor
    complete: bool
    basis: Callable[[int], Tensor]


class Solver(Protocol):
    """Finds singular values.

    resolution  the share of the largest energy below which this solver's energies are rounding errors
    """

    name: str
    resolution: float

    def leading(self, delta: Tensor, energy: float, whole: float, ranks: tuple[int, ...]) -> LeadingValues:
        """At least the first max(ranks) singular values of `delta`, whose ||delta||^2 is `energy`.

        The loss at each of `ranks`, as a share of `whole`, must be right within the solver's tolerance.

        Args:
            whole: ||D||^2 of the delta that `delta` is what is left of; `energy` if nothing was taken out.
        """
        ...
