"""A pool of worker threads, each with an equal share of the cores.

While one worker reads, the other computes, on a GPU too. On two cores, two matrices on a thread each are measured 1.5
times as fast (rank 64, 2048 x 8192; 1.25 times for all singular values) as one matrix on two threads, which wait for
each other at every step; and ten times as fast when another program takes part of a core.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ThreadPoolExecutor, wait
from itertools import accumulate
from typing import Generic

import torch

from deltarank.checkpoints import Prefetcher, interrupt_reads
from deltarank.runtime.tasks import ResultT, TaskT, Worker

MOST_SUBMITTED = 256
"""Groups that wait for a worker or work: a long run has a hundred thousand, and each takes memory once submitted."""


class ThreadPool(Generic[TaskT, ResultT]):
    """Runs groups of tasks on `workers` threads. No result depends on the number of workers or on the order.

    Args:
        make_worker: called once in each thread.
        workers: threads; each of them uses torch.get_num_threads() / workers threads for linear algebra.
    """

    def __init__(self, make_worker: Callable[[], Worker[TaskT, ResultT]], workers: int) -> None:
        self._make_worker = make_worker
        self._workers = workers
        self._local = threading.local()
        self._stopped = threading.Event()

    def results(self, groups: Sequence[Sequence[TaskT]]) -> Iterator[tuple[TaskT, ResultT]]:
        """Yields each task with its result, as they are finished. A worker takes a whole group at a time.

        Raises:
            Exception: the first that a worker raised, after the results of all finished groups were yielded.
        """
        threads = torch.get_num_threads()
        share = max(threads // self._workers, 1)
        pool = ThreadPoolExecutor(self._workers, "deltarank", self._start_worker, (share,))
        pairs = [task.pair for group in groups for task in group]
        prefetcher = Prefetcher(pairs)
        starts = accumulate(map(len, groups), initial=0)

        def submit(group: Sequence[TaskT], number: int) -> Future[Sequence[ResultT]]:
            return pool.submit(self._work, group, number, prefetcher)

        try:
            yield from _as_finished(submit, zip(groups, starts, strict=False))
        except BaseException:
            interrupt_reads(pairs)
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            torch.set_num_threads(threads)

    def _start_worker(self, threads: int) -> None:
        torch.set_num_threads(threads)
        self._local.worker = self._make_worker()

    def _work(self, group: Sequence[TaskT], number: int, prefetcher: Prefetcher) -> Sequence[ResultT]:
        """Announces the next reads first, so that the disk or the network works while this thread computes."""
        if self._stopped.is_set():
            raise CancelledError
        prefetcher.reached(number, at_least=len(group) - 1 + self._workers)
        worker: Worker[TaskT, ResultT] = self._local.worker
        try:
            return worker.results(group)
        except BaseException:
            self._stopped.set()
            raise


def _as_finished(
    submit: Callable[[Sequence[TaskT], int], Future[Sequence[ResultT]]], tasks: Iterable[tuple[Sequence[TaskT], int]]
) -> Iterator[tuple[TaskT, ResultT]]:
    """Submits the groups, some ahead of the workers, and yields from those that are finished."""
    running: dict[Future[Sequence[ResultT]], Sequence[TaskT]] = {}
    failures: list[BaseException] = []
    for group, number in tasks:
        if len(running) >= MOST_SUBMITTED:
            yield from _finished(running, failures)
        if failures:
            break
        running[submit(group, number)] = group
    while running:
        yield from _finished(running, failures)
    if failures:
        raise failures[0]


def _finished(
    running: dict[Future[Sequence[ResultT]], Sequence[TaskT]], failures: list[BaseException]
) -> Iterator[tuple[TaskT, ResultT]]:
    """Waits until a group is finished, and takes all that are."""
    for future in wait(running, return_when=FIRST_COMPLETED).done:
        group = running.pop(future)
        failure = future.exception()
        if failure is None:
            yield from zip(group, future.result(), strict=True)
        elif not isinstance(failure, CancelledError):
            failures.append(failure)
