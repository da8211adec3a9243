"""Muon: momentum whose singular values are all made one (Jordan et al. 2024), for factors with one short side."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

MOMENTUM = 0.9

SMALLEST_SHARE = 1e-8
"""Of the largest squared singular value. Directions below are rounding, and are not made longer than this allows."""


class Muon(torch.optim.Optimizer):
    """Gradient descent with Nesterov's momentum, orthogonalised.

    With the momentum m = MOMENTUM m + g and u = g + MOMENTUM m = U S V^T, a factor moves by -rate * sqrt(n) * U V^T,
    where n is its longer side: the root mean square of the movement is the rate where u has full rank. U V^T is
    (u u^T)^(-1/2) u for the r rows of A, and u (u^T u)^(-1/2) for the r columns of B. So it follows from the
    eigenvectors of an r x r matrix, instead of from an iteration that approximates it.

    Args:
        groups: each with "params", and "lr", the rate. A bias counts as a matrix of one column.
    """

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # a loss is not computed here
        """Moves every factor that has a gradient."""
        for group in self.param_groups:
            for factor in group["params"]:
                if factor.grad is not None:
                    matrix = self._with_momentum(factor).reshape(len(factor), -1)
                    movement = orthogonalise(matrix).view_as(factor)
                    factor.sub_(movement, alpha=group["lr"] * max(matrix.shape) ** 0.5)

    def _with_momentum(self, factor: Tensor) -> Tensor:
        momentum: Tensor = self.state[factor].setdefault("momentum", torch.zeros_like(factor))
        assert factor.grad is not None
        momentum.mul_(MOMENTUM).add_(factor.grad)
        return factor.grad + MOMENTUM * momentum


def orthogonalise(matrix: Tensor) -> Tensor:
    """U V^T for a matrix U S V^T, to the rounding of its dtype. Directions of (almost) no length stay so."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    exact = wide.cpu().double() if wide.device.type == "mps" else wide.double()  # which has no float64
    squares, vectors = torch.linalg.eigh(exact @ exact.T)
    lengths = squares.clamp_min(SMALLEST_SHARE * squares[-1]).sqrt()
    if not lengths[-1]:
        return torch.zeros_like(matrix)
    result: Tensor = (vectors / lengths @ vectors.T).to(wide) @ wide
    return result if matrix.shape[0] <= matrix.shape[1] else result.T.contiguous()
