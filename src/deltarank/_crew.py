"""Two benches side by side, each with half of the threads.

While one reads, the other computes, on a GPU too; and two matrices on a thread each keep two cores busier than one
matrix on two threads, which wait for each other at every step (measured: 1.5 times as fast at rank 64, 1.25 times with
all values, 2048 x 8192), and ten times as long when another program takes part of a core.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed

import torch

from deltarank._bench import Bench
from deltarank._plan import Step
from deltarank._settings import Settings
from deltarank.checkpoints import will_need
from deltarank.results import MatrixResult


class Crew:
    """So many benches, of which each takes the next matrix when it is done."""

    def __init__(self, settings: Settings, benches: int) -> None:
        self._settings = settings
        self._benches = benches
        self._local = threading.local()

    def results(self, steps: Sequence[Step]) -> Iterator[tuple[Step, MatrixResult]]:
        """A result for each step, as they are done. What is measured does not depend on the order."""
        threads = torch.get_num_threads()
        share = max(threads // self._benches, 1)
        pool = ThreadPoolExecutor(self._benches, "deltarank", self._begin, (share,))
        try:
            jobs: dict[Future[MatrixResult], Step] = {
                pool.submit(self._work, steps, i): step for i, step in enumerate(steps)
            }
            for job in as_completed(jobs):
                yield jobs.pop(job), job.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            torch.set_num_threads(threads)

    def _begin(self, threads: int) -> None:
        torch.set_num_threads(threads)
        self._local.bench = Bench(self._settings)

    def _work(self, steps: Sequence[Step], i: int) -> MatrixResult:
        """The system is told what is needed next: its disk works while we compute."""
        if i + self._benches < len(steps):
            will_need(steps[i + self._benches].pair)
        bench: Bench = self._local.bench
        return bench.result(steps[i])
