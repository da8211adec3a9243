"""Two pieces read side by side, some rows at a time, into two buffers that are used again and again."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from deltarank.checkpoints.pieces import Pair, Piece, SummedTensor

BYTES_AHEAD = 64_000_000
MOST_PAIRS_AHEAD = 256


def read_chunks(base: Piece, finetune: Piece, *, entries: int = 1 << 20) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yields (first row, rows of the base, rows of the finetune), in the stored types, in order, each row once.

    The tensors lie in host memory and hold until the next step, which overwrites them. A step has about `entries`
    numbers a side, and at least one row.

    Raises:
        CheckpointError: (slug "unreadable") a file became shorter, or cannot be read.
        ValueError: the shapes differ.
    """
    if base.shape != finetune.shape:
        raise ValueError(f"shapes differ: {base.shape} and {finetune.shape}")
    pieces = (base,) if base is finetune else (base, finetune)  # one: known to hold the same, and read once
    for piece in pieces:
        piece.source.prefetch(piece.file, piece.start, piece.nbytes)
    rows, columns = base.shape
    step = min(rows, max(1, entries // max(columns, 1)))
    sides = [_Side(piece, step) for piece in pieces]
    for first in range(0, rows, step):
        read = [side.read(first, min(step, rows - first)) for side in sides]
        yield first, read[0], read[-1]


def read_rows(piece: Piece, first: int, last: int, *, entries: int = 1 << 20) -> Iterator[tuple[int, Tensor]]:
    """Yields (first row, rows) of one piece, as `chunks` does of two.

    Raises:
        CheckpointError: (slug "unreadable") the file became shorter, or cannot be read.
    """
    step = max(1, min(last - first, entries // max(piece.shape[1], 1)))
    side = _Side(piece, step)
    for at in range(first, last, step):
        yield at, side.read(at, min(step, last - at))


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


def interrupt_reads(pairs: Iterable[Pair | SummedTensor]) -> None:
    """Whoever reads these over a network is not waited for: its reads fail soon."""
    for source in {id(piece.source): piece.source for pair in pairs for piece in (pair.base, pair.finetune)}.values():
        source.interrupt()


class Prefetcher:
    """Announces pairs before they are read, so that the disk or the network works while we compute."""

    def __init__(self, pairs: Sequence[Pair | SummedTensor]) -> None:
        self._pairs = pairs
        self._sizes = [0, *accumulate(pair.nbytes for pair in pairs)]
        self._announced = 0
        self._lock = threading.Lock()

    def reached(self, number: int, *, at_least: int = 1) -> None:
        """The pair of this number is taken in hand: the next `at_least` are announced, and more up to 64 MB."""
        with self._lock:
            while self._announced < len(self._pairs) and self._is_near(number, at_least):
                prefetch(self._pairs[self._announced])
                self._announced += 1

    def _is_near(self, number: int, at_least: int) -> bool:
        """Whether the next that was not announced is to be."""
        distance = self._announced - number
        ahead = self._sizes[self._announced] - self._sizes[number + 1]
        return distance <= at_least or (ahead < BYTES_AHEAD and distance <= MOST_PAIRS_AHEAD)


def prefetch(pair: Pair | SummedTensor) -> None:
    """Tells both sides that this pair is read soon."""
    for piece in pair.pieces:
        piece.source.prefetch(piece.file, piece.start, piece.nbytes)
