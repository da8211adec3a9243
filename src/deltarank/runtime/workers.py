"""Two parallel_matrices side by side, each with half of the threads.

While one reads, the other computes, on a GPU too; and two matrices on a thread each keep two cores busier than one
matrix on two threads, which wait for each other at every step (measured: 1.5 times as fast at rank 64, 1.25 times with
all values, 2048 x 8192), and ten times as long when another program takes part of a core.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, as_completed
from itertools import accumulate
from typing import Generic, Protocol, TypeVar

import torch

from deltarank.checkpoints import Prefetcher, interrupt_reads
from deltarank.runtime.plan import Step

_Result = TypeVar("_Result")


class Worker(Protocol[_Result]):
    """Takes one matrix after another in hand, or several at once, in one thread, with buffers of its own."""

    def results(self, steps: Sequence[Step]) -> list[_Result]: ...


class WorkerPool(Generic[_Result]):
    """So many parallel_matrices, of which each takes the next matrix when it is done."""

    def __init__(self, make: Callable[[], Worker[_Result]], parallel_matrices: int) -> None:
        self._make = make
        self._benches = parallel_matrices
        self._local = threading.local()
        self._stopped = threading.Event()

    def results(self, groups: Sequence[Sequence[Step]]) -> Iterator[tuple[Step, _Result]]:
        """A result for each step, as they are done. What is measured does not depend on the order.

        A worker takes a group at a time.

        What a worker raises ends the run once all that was finished has been handed out.
        """
        threads = torch.get_num_threads()
        share = max(threads // self._benches, 1)
        pool = ThreadPoolExecutor(self._benches, "deltarank", self._begin, (share,))
        pairs = [step.pair for group in groups for step in group]
        ahead = Prefetcher(pairs)
        starts = accumulate(map(len, groups), initial=0)
        try:
            jobs: dict[Future[list[_Result]], Sequence[Step]] = {
                pool.submit(self._work, group, i, ahead): group for group, i in zip(groups, starts, strict=False)
            }
            failures = []
            for job in as_completed(jobs):
                if (failure := job.exception()) is None:
                    yield from zip(jobs.pop(job), job.result(), strict=True)
                elif not isinstance(failure, CancelledError):
                    failures.append(failure)
            if failures:
                raise failures[0]
        except BaseException:
            interrupt_reads(pairs)
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            torch.set_num_threads(threads)

    def _begin(self, threads: int) -> None:
        torch.set_num_threads(threads)
        self._local.measurer = self._make()

    def _work(self, group: Sequence[Step], number: int, ahead: Prefetcher) -> list[_Result]:
        """The system is told what is needed next: its disk, or the network, works while we compute."""
        if self._stopped.is_set():
            raise CancelledError
        ahead.reached(number, at_least=len(group) - 1 + self._benches)
        measurer: Worker[_Result] = self._local.measurer
        try:
            return measurer.results(group)
        except BaseException:
            self._stopped.set()
            raise
