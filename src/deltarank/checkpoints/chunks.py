"""Pieces read some rows at a time into reused buffers, and prefetched before they are read."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from deltarank.checkpoints.pieces import Pair, Piece, SummedTensor

PREFETCH_BYTES = 64_000_000
MAX_PREFETCHED_PAIRS = 256


CHUNK_ENTRIES = 1 << 20
"""Numbers of each side that are read at once."""


def rows_of_chunk(piece: Piece, entries: int = CHUNK_ENTRIES) -> int:
    """The rows that `read_chunks` reads at once."""
    return min(piece.shape[0], max(1, entries // max(piece.shape[1], 1)))


def read_chunks(
    base: Piece, finetune: Piece, *, first: int = 0, last: int | None = None, entries: int = CHUNK_ENTRIES
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yields (first row, rows of the base, rows of the finetune) in order, in the stored dtypes.

    The tensors are in host memory and are overwritten by the next step. A step has about `entries` numbers per side,
    and at least one row.

    Args:
        first, last: reads the rows [first, last). The steps are those of the whole if both are multiples of
            `rows_of_chunk`, or the end.

    Raises:
        CheckpointError: (slug "unreadable") a file became shorter, or cannot be read.
        ValueError: the shapes differ.
    """
    if base.shape != finetune.shape:
        raise ValueError(f"shapes differ: {base.shape} and {finetune.shape}")
    pieces = (base,) if base is finetune else (base, finetune)  # known to be the same bytes: read once
    end = base.shape[0] if last is None else last
    for piece in pieces:
        row_nbytes = piece.shape[1] * piece.dtype.itemsize
        piece.source.prefetch(piece.file, piece.start + first * row_nbytes, (end - first) * row_nbytes)
    step = rows_of_chunk(base, entries)
    readers = [_PieceReader(piece, step) for piece in pieces]
    for row in range(first, end, step):
        chunks = [reader.read(row, min(step, end - row)) for reader in readers]
        yield row, chunks[0], chunks[-1]


def read_rows(piece: Piece, first: int, last: int, *, entries: int = CHUNK_ENTRIES) -> Iterator[tuple[int, Tensor]]:
    """Yields (first row, rows) of one piece, as `read_chunks` does of two.

    Raises:
        CheckpointError: (slug "unreadable") the file became shorter, or cannot be read.
    """
    step = max(1, min(last - first, entries // max(piece.shape[1], 1)))
    reader = _PieceReader(piece, step)
    for row in range(first, last, step):
        yield row, reader.read(row, min(step, last - row))


class _PieceReader:
    """A piece and the buffer that its rows are read into."""

    def __init__(self, piece: Piece, rows: int) -> None:
        self._piece = piece
        self._row_nbytes = piece.shape[1] * piece.dtype.itemsize
        self._bytes = torch.empty(rows * self._row_nbytes, dtype=torch.uint8)
        self._view = self._bytes.numpy().data

    def read(self, first: int, rows: int) -> Tensor:
        length = rows * self._row_nbytes
        piece = self._piece
        piece.source.read_into(piece.file, piece.start + first * self._row_nbytes, self._view[:length])
        return self._bytes[:length].view(piece.dtype).view(rows, piece.shape[1])


def interrupt_reads(pairs: Iterable[Pair | SummedTensor]) -> None:
    """Makes reads of these pairs that wait for a network fail soon."""
    for source in {id(piece.source): piece.source for pair in pairs for piece in (pair.base, pair.finetune)}.values():
        source.interrupt()


def prefetch(pair: Pair | SummedTensor) -> None:
    """Hints to the sources of both sides that this pair will be read soon."""
    for piece in pair.pieces:
        piece.source.prefetch(piece.file, piece.start, piece.nbytes)


class Prefetcher:
    """Prefetches pairs before they are read, so that the disk or the network works while the CPU computes."""

    def __init__(self, pairs: Sequence[Pair | SummedTensor]) -> None:
        self._pairs = pairs
        self._offsets = [0, *accumulate(pair.nbytes for pair in pairs)]
        self._prefetched = 0
        self._lock = threading.Lock()

    def reached(self, index: int, *, at_least: int = 1) -> None:
        """Work on pair `index` begins: prefetches the next `at_least` pairs, and more up to 64 MB."""
        with self._lock:
            while self._prefetched < len(self._pairs) and self._is_near(index, at_least):
                prefetch(self._pairs[self._prefetched])
                self._prefetched += 1

    def _is_near(self, index: int, at_least: int) -> bool:
        """Whether the first pair that was not prefetched yet is close enough to `index`."""
        distance = self._prefetched - index
        nbytes_between = self._offsets[self._prefetched] - self._offsets[index + 1]
        return distance <= at_least or (nbytes_between < PREFETCH_BYTES and distance <= MAX_PREFETCHED_PAIRS)
