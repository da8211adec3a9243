"""Sketches of deltas: short vectors with nearly the inner products of the deltas.

CountSketch (Charikar, Chen, Farach-Colton 2002, "Finding frequent items in data streams"): each entry d of a delta gets
a sign s and one of k buckets at random, and bucket b of the sketch is the sum of s d over its entries. The sketch is
linear in the delta, costs a few operations an entry, and for two deltas x, y of one shape

    E<Sx, Sy> = <x, y>,    Var<Sx, Sy> <= (||x||^2 ||y||^2 + <x, y>^2) / k.

Signs are independent. The bucket of entry (i, j) is (a_i + b_j) mod k with random a and b: two entries share a bucket
with probability 1/k, which is all that the bound needs of the buckets, and rows can be added before columns.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

_ENTRIES = 1 << 20
"""Entries that are signed at a time."""

LONGEST, SHORTEST, NUMBERS = 1024, 16, 1 << 16


def sketch_length(matrices: int) -> int:
    """The buckets of each matrix of a model: a power of two, with at least 65,536 in all from 64 to 4,096 matrices."""
    wanted = -(-NUMBERS // max(matrices, 1))
    return min(max(1 << (wanted - 1).bit_length(), SHORTEST), LONGEST)


class Sketcher:
    """The sketch of one matrix, whose rows come in order. It depends on the seed, the shape and the delta alone.

    It computes on the CPU in one order, so that neither the device nor the number of threads changes a bit of it.
    """

    def __init__(self, shape: tuple[int, int], length: int, *, seed: int) -> None:
        rows, self._columns = shape
        self._random = np.random.SFC64(seed)  # raw output of a bit generator is the same in all versions of NumPy
        self._row_buckets = torch.from_numpy(self._draw(rows, length))
        self._column_buckets = torch.from_numpy(self._draw(self._columns, length))
        self._folded = torch.zeros(length, self._columns)
        self._next = 0

    def add(self, rows: Tensor) -> None:
        """Takes the next rows of the delta, (n, columns)."""
        step = max(_ENTRIES // self._columns, 1) if self._columns else 1
        for part in torch.split(rows, step):
            signed = self._signs(len(part)).mul_(part.to("cpu", torch.float32))
            self._folded.index_add_(0, self._row_buckets[self._next : self._next + len(part)], signed)
            self._next += len(part)

    def sketch(self) -> Tensor:
        """(length,), float32."""
        length = len(self._folded)
        square = torch.zeros(length, length).index_add_(1, self._column_buckets, self._folded)
        sums = np.bincount(_added_buckets(length), weights=square.numpy().ravel(), minlength=length)
        return torch.from_numpy(sums.astype(np.float32))

    def _draw(self, count: int, below: int) -> np.ndarray:
        return (self._random.random_raw(count) % np.uint64(below)).astype(np.int64)

    def _signs(self, rows: int) -> Tensor:
        """(rows, columns) of +1 and -1. Each row starts at a new word, so that no sign depends on how rows arrive."""
        words = self._random.random_raw(rows * -(-self._columns // 64)).astype("<u8").reshape(rows, -1)
        bits = np.unpackbits(words.view(np.uint8), axis=1, count=self._columns)
        return torch.from_numpy(bits).to(torch.float32).mul_(-2).add_(1)


@lru_cache(maxsize=4)
def _added_buckets(length: int) -> np.ndarray:
    """(i + j) mod length at the place of entry (i, j) of a (length, length) array."""
    buckets = np.arange(length)
    return np.add.outer(buckets, buckets).ravel() % length


def sketch_delta(delta: Tensor, length: int, *, seed: int) -> Tensor:
    """The sketch of a whole delta, (rows, columns)."""
    rows, columns = delta.shape
    sketcher = Sketcher((rows, columns), length, seed=seed)
    sketcher.add(delta)
    return sketcher.sketch()
