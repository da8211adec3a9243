"""Where the tasks of a job run.

A job makes tasks and a factory of workers, and asks `task_pool` for a pool: one of threads, unless another kind was
chosen where a command or a program begins, with `use_pools`. No job knows of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from deltarank.runtime.tasks import PoolMaker, ResultT, TaskPool, TaskT, Worker
from deltarank.runtime.thread_pool import ThreadPool


def _thread_pool(
    make_worker: Callable[[], Worker[TaskT, ResultT]], *, workers: int, device: torch.device
) -> TaskPool[TaskT, ResultT]:
    return ThreadPool(make_worker, workers)


_chosen: ContextVar[PoolMaker] = ContextVar("pool maker", default=_thread_pool)


@contextmanager
def use_pools(maker: PoolMaker) -> Iterator[None]:
    """All jobs of the block use pools of this kind."""
    token = _chosen.set(maker)
    try:
        yield
    finally:
        _chosen.reset(token)


def task_pool(
    make_worker: Callable[[], Worker[TaskT, ResultT]], *, workers: int, device: torch.device
) -> TaskPool[TaskT, ResultT]:
    """A pool of the kind that was chosen; see `PoolMaker`."""
    return _chosen.get()(make_worker, workers=workers, device=device)
