"""Two pieces read side by side, some rows at a time, into two buffers that are used again and again."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from deltarank.checkpoints._pieces import Leftover, Pair, Piece


def chunks(base: Piece, finetune: Piece, *, entries: int = 1 << 20) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yields (first row, rows of the base, rows of the finetune), in the stored types, in order, each row once.

    The tensors lie in host memory and hold until the next step, which overwrites them. A step has about `entries`
    numbers a side, and at least one row.

    Raises:
        CheckpointError: (slug "unreadable") a file became shorter, or cannot be read.
        ValueError: the shapes differ.
    """
    if base.shape != finetune.shape:
        raise ValueError(f"shapes differ: {base.shape} and {finetune.shape}")
    rows, columns = base.shape
    step = min(rows, max(1, entries // max(columns, 1)))
    sides = (_Side(base, step), _Side(finetune, step))
    for first in range(0, rows, step):
        ours, theirs = (side.read(first, min(step, rows - first)) for side in sides)
        yield first, ours, theirs


class _Side:
    """One piece and the buffer that its rows go through."""

    def __init__(self, piece: Piece, rows: int) -> None:
        self._piece = piece
        self._row = piece.shape[1] * piece.dtype.itemsize
        self._bytes = torch.empty(rows * self._row, dtype=torch.uint8)
        self._view = self._bytes.numpy().data

    def read(self, first: int, rows: int) -> Tensor:
        length = rows * self._row
        piece = self._piece
        piece.source.read_into(piece.file, piece.start + first * self._row, self._view[:length])
        return self._bytes[:length].view(piece.dtype).view(rows, piece.shape[1])


def will_need(pair: Pair | Leftover) -> None:
    """Tells the system that this pair is read soon, so that the disk works while we compute."""
    for piece in (pair.base, pair.finetune):
        piece.source.will_need(piece.file, piece.start, piece.nbytes)
