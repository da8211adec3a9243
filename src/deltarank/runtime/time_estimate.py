"""How much of a job is done, and how long the rest will take."""

from __future__ import annotations

import time

from deltarank.runtime.progress import ProgressListener
from deltarank.runtime.throughput import Throughput


class TimeEstimate:
    """Scales the seconds that a plan foretold by the time that the finished part has taken.

    Args:
        planned: seconds of the whole job, as planned.
        resumed: seconds of it that an earlier process has done; they say nothing about this one's speed.
        throughput: reports the bytes of a streamed run at each step.
    """

    def __init__(
        self,
        progress: ProgressListener,
        planned: float,
        *,
        resumed: float = 0.0,
        throughput: Throughput | None = None,
    ) -> None:
        self._progress, self._throughput = progress, throughput
        self._planned = max(planned, 1e-9)
        self._resumed = resumed
        self._done = 0.0
        self._started = time.perf_counter()

    def add(self, name: str, seconds: float, *, resumed: bool = False) -> None:
        """Reports that `name` is finished, which was planned to take `seconds`."""
        if resumed:
            self._resumed += seconds
        else:
            self._done += seconds
        if self._throughput is not None:
            self._throughput.report()
        done = self._resumed + self._done
        slowdown = (time.perf_counter() - self._started) / self._done if self._done > 0 else 1.0
        left = max(self._planned - done, 0.0)
        self._progress.finished(name, left * slowdown, min(done / self._planned, 1.0))
