"""The values that an adapter adds to one tensor, some rows at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from deltarank.adapters.apply import Change
from deltarank.adapters.parts import PartKind
from deltarank.adapters.read import LoraAdapter
from deltarank.checkpoints import Piece


class LoraUpdate:
    """L = the sum of `changes`, shaped (rows, columns) as the tensor is stored, in `dtype` on `device`.

    The thin factors are held whole; of their product, only the rows that are asked for are computed.

    Raises:
        CheckpointError: (slug "unreadable") a factor cannot be read.
    """

    def __init__(
        self, adapter: LoraAdapter, changes: Sequence[Change], *, device: torch.device, dtype: torch.dtype
    ) -> None:
        loras = [change for change in changes if change.placement.part.is_lora]
        self._products = [_Product(adapter, change, device, dtype) for change in loras]
        self._stored = [_StoredTensor(adapter, change) for change in changes if not change.placement.part.is_lora]

    def rows(self, first: int, base: Tensor) -> Tensor:
        """Rows `first` to `first + len(base)` of L; `base` holds these rows of W0, in L's dtype and on its device."""
        added = torch.zeros_like(base)
        for stored in self._stored:
            stored.add_to(added, first, base)
        for product in self._products:
            product.add_to(added, first)
        return added


class _Product:
    """scale * B A, or its transpose."""

    def __init__(self, adapter: LoraAdapter, change: Change, device: torch.device, dtype: torch.dtype) -> None:
        down, up = (factor.to(device, dtype) for factor in adapter.factors(change.placement.part))
        self._left, self._right = (down.T, up.T) if change.placement.is_transposed else (up, down)
        self._scale = change.scale

    def add_to(self, added: Tensor, first: int) -> None:
        added.addmm_(self._left[first : first + len(added)], self._right, alpha=self._scale)


class _StoredTensor:
    """A whole tensor, which replaces the base's; or a bias, which is added to it."""

    def __init__(self, adapter: LoraAdapter, change: Change) -> None:
        part, columns = change.placement.part, change.placement.target.base.shape[1]
        shape = (math.prod(part.up.shape) // max(columns, 1), columns)
        self._piece = Piece.from_info(part.up, adapter.file.source, shape)
        self._scale = change.scale
        self._replaces = part.kind is PartKind.WHOLE

    def add_to(self, added: Tensor, first: int, base: Tensor) -> None:
        stored = self._read(first, len(added)).to(added.device, added.dtype)
        if self._replaces:
            added += stored - base
        else:
            added.add_(stored, alpha=self._scale)

    def _read(self, first: int, rows: int) -> Tensor:
        piece = self._piece
        row_bytes = piece.shape[1] * piece.dtype.itemsize
        raw = torch.empty(rows * row_bytes, dtype=torch.uint8)
        piece.source.read_into(piece.file, piece.start + first * row_bytes, raw.numpy().data)
        return raw.view(piece.dtype).view(rows, piece.shape[1])
