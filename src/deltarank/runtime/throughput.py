"""What a run has streamed so far, how fast, and how much there is to come."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable

from deltarank.checkpoints import Checkpoint, Pair, Piece, SummedTensor
from deltarank.runtime.progress import ProgressListener

WINDOW = 20.0
"""Seconds over which the speed is taken: a line's speed changes in hours."""


class Throughput:
    """Tells the progress of bytes and speed; says nothing where nothing is streamed."""

    def __init__(
        self,
        checkpoints: tuple[Checkpoint, Checkpoint],
        pairs: Iterable[Pair | SummedTensor],
        progress: ProgressListener,
    ) -> None:
        self._counts = [each.traffic for each in checkpoints if each.traffic is not None]
        pieces = [piece for pair in pairs for piece in pair.pieces]
        self._whole = sum(piece.stored_nbytes for each in checkpoints for piece in pieces if _is_streamed(piece, each))
        self._before = self._received()
        self._progress = progress
        self._seen = deque([(time.monotonic(), self._before)])

    def tick(self) -> None:
        if not self._counts:
            return
        now, received = time.monotonic(), self._received()
        self._seen.append((now, received))
        while len(self._seen) > 2 and now - self._seen[0][0] > WINDOW:
            self._seen.popleft()
        then, less = self._seen[0]
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
