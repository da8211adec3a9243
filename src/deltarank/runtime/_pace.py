"""How far a job is: shares of a foretold amount of work, and the time that the rest will take at this pace."""

from __future__ import annotations

import time

from deltarank.runtime.progress import ProgressListener


class Pace:
    """Adds up work in seconds as a plan foretold them."""

    def __init__(self, progress: ProgressListener, whole: float) -> None:
        self._progress, self._whole = progress, max(whole, 1e-9)
        self._done = self._skipped = 0.0
        self._started = time.perf_counter()

    def add(self, name: str, seconds: float, *, kept: bool = False) -> None:
        """`kept`: an earlier process did it, so it tells nothing about the pace."""
        self._done += seconds
        self._skipped += seconds if kept else 0.0
        fresh = self._done - self._skipped
        pace = (time.perf_counter() - self._started) / fresh if fresh > 0 else 1.0
        left = max(self._whole - self._done, 0.0)
        self._progress.finished(name, left * pace, min(self._done / self._whole, 1.0))
