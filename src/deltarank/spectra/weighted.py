"""What a truncation loses of the products that a matrix is used for: losses weighted by the inputs of a linear layer.

Activation-aware truncation weighs errors so (ASVD, Yuan et al. 2023; SVD-LLM, Wang et al. 2024). Here the truncation
stays the plain one, and only its loss is measured so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deltarank.spectra.delta import widest_dtype
from deltarank.spectra.factors import Factors

_CHUNK_ENTRIES = 1 << 22


@dataclass(frozen=True)
class InputGram:
    """C = sum of x x' over the inputs x of one use of a matrix D.

    values   (d, d); or the diagonal of C, (d,), of inputs that are one-hot
    on_rows  whether entries of x belong to the rows of D: then the product is x' D, as in an embedding or in GPT-2's
             Conv1D. Otherwise it is D x, as in a linear layer
    """

    values: Tensor
    on_rows: bool


def weighted_errors(
    delta: Tensor, factors: Factors, grams: Iterable[InputGram], ranks: Sequence[int]
) -> tuple[float, tuple[float, ...]]:
    """The sums of ||D x||^2, and of ||(D - D_r) x||^2 at each rank, over all inputs of all uses of the matrix.

    The sum of ||M x||^2 is tr(M C M'). With factors D_m = A B of the largest rank m, R = D - D_m and T = D_m - D_r, the
    error is tr(R C R') + 2 tr(R C T') + tr(T C T'): where little is lost, nothing cancels.

    Args:
        delta: D, (rows, columns).
        factors: of D, of a rank m. At a rank r beyond m the error is that of m; at full rank it is 0.
    """
    energy, errors = 0.0, [0.0] * len(ranks)
    for gram in grams:
        matrix = delta.T if gram.on_rows else delta
        left, right = (factors.right.T, factors.left.T) if gram.on_rows else (factors.left, factors.right)
        terms = _terms(matrix, left, right, gram.values)
        energy += terms.error(0)
        errors = [error + terms.error(rank) for error, rank in zip(errors, ranks, strict=True)]
    whole = min(delta.shape)
    return energy, tuple(0.0 if rank >= whole else error for error, rank in zip(errors, ranks, strict=True))


@dataclass(frozen=True)
class _Terms:
    """Of the error at every rank, for the columns a_i of A and the rows b_i of B.

    residual  tr(R C R')
    cross     (m,), a_i' R C b_i
    gram      (m, m), (a_i' a_j) (b_i' C b_j)
    """

    residual: float
    cross: Tensor
    gram: Tensor

    def error(self, rank: int) -> float:
        tail = self.residual + 2 * float(self.cross[rank:].sum()) + float(self.gram[rank:, rank:].sum())
        return max(tail, 0.0)


def _terms(matrix: Tensor, left: Tensor, right: Tensor, values: Tensor) -> _Terms:
    values = values.to(matrix.dtype)
    weighted_right = _times(right, values).T
    wide = widest_dtype(matrix)
    cross = torch.zeros(left.shape[1], dtype=wide, device=matrix.device)
    residuals = []
    for rows, part in _row_chunks(matrix, left):
        rest = torch.addmm(rows, part, right, alpha=-1)
        residuals.append(float((_times(rest, values) * rest).sum(dtype=wide)))
        cross += (part * (rest @ weighted_right)).sum(0, dtype=wide)
    gram = (left.T.to(wide) @ left.to(wide)) * (right.to(wide) @ weighted_right.to(wide))
    return _Terms(math.fsum(residuals), cross, gram)


def _times(matrix: Tensor, values: Tensor) -> Tensor:
    """matrix C."""
    return matrix * values if values.ndim == 1 else matrix @ values


def _row_chunks(matrix: Tensor, left: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    step = max(1, _CHUNK_ENTRIES // max(matrix.shape[1], 1))
    return zip(torch.split(matrix, step), torch.split(left, step), strict=True)
