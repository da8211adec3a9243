"""How much of a job is done, and how long the rest will take."""

from __future__ import annotations

import time

from deltarank.runtime.progress import ProgressListener
from deltarank.runtime.throughput import Throughput

START_UP = 10.0
"""Seconds by which the first piece of work may exceed its plan without being taken for slow: it starts the workers,
reads files that nothing has read before and initialises libraries."""

TRUSTED_SHARE = 0.05
"""The share of the plan after which only the measured speed counts. Until then it is blended with the planned one."""


class TimeEstimate:
    """The planned seconds of the work that is left, scaled by the measured slowdown.

    slowdown = 1 + w (elapsed / done - 1), where `done` are the planned seconds of the work that this process has done,
    `elapsed` those that it took without the start-up, and w = done / (TRUSTED_SHARE of the plan), at most 1.

    Args:
        planned: seconds of the whole job, as planned.
        resumed: seconds of it that were done before; they say nothing about the speed from now on.
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
        self._start_up: float | None = None

    def add(self, name: str, seconds: float, *, resumed: bool = False) -> None:
        """Reports that `name` is finished, which was planned to take `seconds`."""
        if resumed:
            self._resumed += seconds
        else:
            self._done += seconds
        if self._throughput is not None:
            self._throughput.report()
        done = self._resumed + self._done
        left = max(self._planned - done, 0.0)
        self._progress.finished(name, left * self._slowdown(), min(done / self._planned, 1.0))

    def _slowdown(self) -> float:
        if self._done <= 0:
            return 1.0
        elapsed = time.perf_counter() - self._started
        if self._start_up is None:
            self._start_up = min(max(elapsed - self._done, 0.0), START_UP)
        weight = min(self._done / (TRUSTED_SHARE * self._planned), 1.0)
        return 1.0 + weight * ((elapsed - self._start_up) / self._done - 1.0)
