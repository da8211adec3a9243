"""D D' as a Krylov space sees it: by products with D and D', or as a square matrix that was formed before."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from deltarank.spectra.low_precision import has_fast_bfloat16
from deltarank.spectra.rounding_bias import noise_deviation
from deltarank.spectra.workspace import Workspace

BFLOAT16 = 4e-5
"""The energy of the noise, as a share, when D and the blocks are in bfloat16: 30 times that of rounding D alone."""


class Operator(Protocol):
    """D D', (side, side), applied to a block of rows, (k, side), in two steps: the last block needs the first only."""

    side: int
    noise: float
    """The standard deviation of what rounding adds to an entry of D D'; 0 in the working precision."""

    block: int
    """How many rows it is applied to at a time: few need a smaller space in the end, many are faster by the row."""

    share: float
    """Of the tolerance, for what iterating on may still bring: the rest is for rounding, and for looking ahead."""

    stride: int
    """By how much a space grows between two looks at its values: more where growing costs less than looking."""

    def image(self, block: Tensor) -> Tensor:
        """Half of the way, in whatever form."""
        ...

    def within(self, block: Tensor, image: Tensor) -> Tensor:
        """(k, k): D D' between the rows of the block."""
        ...

    def onward(self, image: Tensor) -> Tensor:
        """(k, side): the block times D D'."""
        ...


class ProductOperator:
    """Two products a block, with D and with D': `wide` is (side, length), in any type."""

    block = stride = 48
    share = 0.7

    def __init__(self, wide: Tensor, working: torch.dtype, *, noise: float = 0.0) -> None:
        self.side = wide.shape[0]
        self.noise = noise
        self._wide = wide
        self._working = working

    def image(self, block: Tensor) -> Tensor:
        return block.to(self._wide.dtype) @ self._wide

    def within(self, block: Tensor, image: Tensor) -> Tensor:
        exact = image.to(self._working)
        return exact @ exact.T

    def onward(self, image: Tensor) -> Tensor:
        return (image @ self._wide.T).to(self._working)


class GramOperator:
    """One product a block, with D D' itself, which is S N S: N in few bits, but for its diagonal, which is the most.

    Args:
        low: N, (side, side), symmetric; zeros in the diagonal.
        scales: those of S, (side,).
        diagonal: that of D D', (side,).
    """

    block = 16
    stride = 80
    share = 0.7

    def __init__(self, low: Tensor, scales: Tensor, diagonal: Tensor, *, noise: float) -> None:
        self.side = low.shape[0]
        self.noise = noise
        self._low = low
        self._scales = scales
        self._diagonal = diagonal

    def image(self, block: Tensor) -> Tensor:
        scaled = (block * self._scales).to(self._low.dtype)
        image = (self._low @ scaled.T).T.to(block.dtype, memory_format=torch.contiguous_format)
        return image.mul_(self._scales).addcmul_(block, self._diagonal)

    def within(self, block: Tensor, image: Tensor) -> Tensor:
        restricted = image @ block.T
        return (restricted + restricted.T) / 2

    def onward(self, image: Tensor) -> Tensor:
        return image


def bfloat16_operator(wide: Tensor, energy: float, workspace: Workspace) -> ProductOperator:
    """With `wide` in bfloat16 where products in it are faster."""
    if wide.dtype != torch.float32 or not has_fast_bfloat16(wide.device):
        return ProductOperator(wide, wide.dtype)
    stored = wide if wide.is_contiguous() else wide.T
    low = workspace.empty("krylov operator", stored.shape, torch.bfloat16).copy_(stored)
    noise = noise_deviation(energy, wide.shape[0], wide.shape[1], BFLOAT16)
    return ProductOperator(low if wide.is_contiguous() else low.T, wide.dtype, noise=noise)
