"""D D' as a Krylov space sees it: as products with D and D', or as a square matrix that was formed before."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from deltarank.spectra.low_precision import has_fast_bfloat16
from deltarank.spectra.rounding_bias import noise_deviation
from deltarank.spectra.workspace import Workspace

BFLOAT16_NOISE = 4e-5
"""The noise, as a share of the energy, with D and the blocks in bfloat16: 30 times that of rounding D alone."""


class Operator(Protocol):
    """D D', (side, side), applied to blocks of rows, (k, side), in two steps. The last block needs only the first step.

    noise             the standard deviation of what rounding adds to an entry of D D'; 0 in the working precision
    block_size        rows of a block: small blocks need a smaller space in the end, large ones take less time per row
    tolerance_share   the share of the tolerance for what further iteration may still gain; the rest is for rounding
                      and for errors of the extrapolation
    check_interval    dimensions between two convergence checks: more where growing the space is cheaper than a check
    """

    side: int
    noise: float
    block_size: int
    tolerance_share: float
    check_interval: int

    def first_product(self, block: Tensor) -> Tensor:
        """The first step: the block times D, (k, length), or times D D', (k, side)."""
        ...

    def restrict(self, block: Tensor, first: Tensor) -> Tensor:
        """(k, k): D D' restricted to the rows of the block, from the first step."""
        ...

    def full_product(self, first: Tensor) -> Tensor:
        """(k, side): the block times D D', from the first step."""
        ...


class ProductOperator:
    """Two products for each block, with D and with D'. `wide` is (side, length), in any dtype."""

    block_size = check_interval = 48
    tolerance_share = 0.7

    def __init__(self, wide: Tensor, working_dtype: torch.dtype, *, noise: float = 0.0) -> None:
        self.side = wide.shape[0]
        self.noise = noise
        self._wide = wide
        self._working_dtype = working_dtype

    def first_product(self, block: Tensor) -> Tensor:
        return block.to(self._wide.dtype) @ self._wide

    def restrict(self, block: Tensor, first: Tensor) -> Tensor:
        upcast = first.to(self._working_dtype)
        return upcast @ upcast.T

    def full_product(self, first: Tensor) -> Tensor:
        return (first @ self._wide.T).to(self._working_dtype)


class GramOperator:
    """One product for each block, with D D' = S N S: N is in low precision, except for its diagonal, the largest part.

    Args:
        scaled_gram: N, (side, side), symmetric, with zeros on the diagonal.
        scales: the diagonal of S, (side,).
        diagonal: the diagonal of D D', (side,).
    """

    block_size = 16
    check_interval = 80
    tolerance_share = 0.7

    def __init__(self, scaled_gram: Tensor, scales: Tensor, diagonal: Tensor, *, noise: float) -> None:
        self.side = scaled_gram.shape[0]
        self.noise = noise
        self._scaled_gram = scaled_gram
        self._scales = scales
        self._diagonal = diagonal

    def first_product(self, block: Tensor) -> Tensor:
        scaled = (block * self._scales).to(self._scaled_gram.dtype)
        product = (self._scaled_gram @ scaled.T).T.to(block.dtype, memory_format=torch.contiguous_format)
        return product.mul_(self._scales).addcmul_(block, self._diagonal)

    def restrict(self, block: Tensor, first: Tensor) -> Tensor:
        restricted = first @ block.T
        return (restricted + restricted.T) / 2

    def full_product(self, first: Tensor) -> Tensor:
        return first


def product_operator(wide: Tensor, energy: float, workspace: Workspace) -> ProductOperator:
    """Products with `wide` in bfloat16 if the device is faster at that, otherwise in its own dtype."""
    if wide.dtype != torch.float32 or not has_fast_bfloat16(wide.device):
        return ProductOperator(wide, wide.dtype)
    stored = wide if wide.is_contiguous() else wide.T
    low = workspace.empty("krylov operator", stored.shape, torch.bfloat16).copy_(stored)
    noise = noise_deviation(energy, wide.shape[0], wide.shape[1], BFLOAT16_NOISE)
    return ProductOperator(low if wide.is_contiguous() else low.T, wide.dtype, noise=noise)
