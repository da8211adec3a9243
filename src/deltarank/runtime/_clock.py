"""How much of a run is done, and how long the rest will take."""

from __future__ import annotations

import math
import time
from collections.abc import Set

from deltarank.checkpoints import Checkpoint
from deltarank.runtime.plan import READ_RATE, Plan
from deltarank.runtime.progress import ProgressListener
from deltarank.runtime.throughput import Throughput


class Clock:
    """Foretells the time left from the plan's costs and the time that those done have taken.

    `done` names what an earlier process finished.
    """

    def __init__(
        self, plan: Plan, done: Set[str], checkpoints: tuple[Checkpoint, Checkpoint], progress: ProgressListener
    ) -> None:
        costs = [(s.pair.name, s.seconds + s.pair.nbytes / READ_RATE) for s in plan.steps]
        costs += [(x.name, x.nbytes / READ_RATE) for x in plan.pairing.summed]
        waiting = [step.pair for step in plan.steps if step.pair.name not in done]
        self._meter = Throughput(
            checkpoints, [*waiting, *(x for x in plan.pairing.summed if x.name not in done)], progress
        )
        self._progress = progress
        self._whole = math.fsum(cost for _, cost in costs)
        self._before = math.fsum(cost for name, cost in costs if name in done)
        self._since = 0.0
        self._started = time.perf_counter()

    def tick(self, name: str, cost: float) -> None:
        self._since += cost
        self._meter.tick()
        done = self._before + self._since
        pace = (time.perf_counter() - self._started) / self._since if self._since > 0 else 0.0
        share = min(done / self._whole, 1.0) if self._whole > 0 else 1.0
        self._progress.finished(name, max(self._whole - done, 0.0) * pace, share)
