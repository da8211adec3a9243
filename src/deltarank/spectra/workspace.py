"""Scratch that is lent again and again: a fresh large temporary costs as much as the work done in it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class Workspace:
    """Named flat buffers on one device that grow to the largest use and are lent as views."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._buffers: dict[tuple[str, torch.dtype], Tensor] = {}

    def empty(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor of this shape; it is valid until the same name is lent again."""
        size = math.prod(shape)
        held = self._buffers.get((name, dtype))
        if held is None or held.numel() < size:
            self._buffers.pop((name, dtype), None)
            del held  # so that the smaller one is gone before the larger one is asked for
            held = self._buffers[name, dtype] = torch.empty(size, dtype=dtype, device=self.device)
        return held[:size].view(*shape)

    def empty_like(self, name: str, other: Tensor) -> Tensor:
        return self.empty(name, other.shape, other.dtype)

    @property
    def nbytes(self) -> int:
        return sum(buffer.nbytes for buffer in self._buffers.values())
