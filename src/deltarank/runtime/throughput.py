"""Bytes that a job has streamed, how fast, and how many are still to come."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable

from deltarank.checkpoints import Checkpoint, Pair, Piece, SummedTensor
from deltarank.runtime.progress import ProgressListener

WINDOW = 20.0
"""Seconds over which the speed is averaged: the speed of a connection changes within hours."""


class Throughput:
    """Reports bytes and speed; reports nothing where nothing is streamed."""

    def __init__(
        self,
        checkpoints: tuple[Checkpoint, Checkpoint],
        waiting: Iterable[Pair | SummedTensor],
        progress: ProgressListener,
    ) -> None:
        """`waiting`: the tensors that are still to be read."""
        self._counts = [each.traffic for each in checkpoints if each.traffic is not None]
        pieces = [piece for pair in waiting for piece in pair.pieces]
        self._whole = sum(piece.stored_nbytes for each in checkpoints for piece in pieces if _is_streamed(piece, each))
        self._before = self._received()
        self._progress = progress
        self._samples = deque([(time.monotonic(), self._before)])

    def report(self) -> None:
        if not self._counts:
            return
        now, received = time.monotonic(), self._received()
        self._samples.append((now, received))
        while len(self._samples) > 2 and now - self._samples[0][0] > WINDOW:
            self._samples.popleft()
        then, less = self._samples[0]
        speed = (received - less) / (now - then) if now > then else 0.0
        done = received - self._before
        self._progress.streamed(done, max(self._whole, done), speed)

    def _received(self) -> int:
        return sum(count.received for count in self._counts)


def _is_streamed(piece: Piece, checkpoint: Checkpoint) -> bool:
    """Some files of a streamed checkpoint may lie in the cache."""
    if checkpoint.traffic is None or piece.source is not checkpoint.source:
        return False
    return piece.file in checkpoint.traffic.files or piece.file not in checkpoint.reference.files
