"""What a pool of workers is: tasks, the workers that work on them, and the interface of all kinds of pools."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

import torch

from deltarank.checkpoints import Pair, SummedTensor


class Task(Protocol):
    """A tensor to work on. It is pickled for another machine: its sources then become references to their files."""

    @property
    def pair(self) -> Pair | SummedTensor: ...


TaskT = TypeVar("TaskT", bound=Task)
ResultT = TypeVar("ResultT")
_Handled = TypeVar("_Handled", bound=Task, contravariant=True)
_Given = TypeVar("_Given", covariant=True)


class Worker(Protocol[_Handled, _Given]):
    """Works on one group of tasks after another, in one thread, with buffers of its own. Its results are plain data."""

    def results(self, tasks: Sequence[_Handled]) -> Sequence[_Given]: ...


class TaskPool(Protocol[TaskT, _Given]):
    """Runs groups of tasks. No result depends on the kind of pool, on the number of workers, or on the order."""

    def results(self, groups: Sequence[Sequence[TaskT]]) -> Iterator[tuple[TaskT, _Given]]:
        """Yields each task with its result, as they are finished. A worker takes a whole group at a time.

        Raises:
            Exception: the first that a worker raised, after the results of all finished groups were yielded.
        """


class PoolMaker(Protocol):
    """Makes the pool of one pass over many tensors."""

    def __call__(
        self, make_worker: Callable[[], Worker[TaskT, ResultT]], *, workers: int, device: torch.device
    ) -> TaskPool[TaskT, ResultT]:
        """
        Args:
            make_worker: called once for each worker. Only what can be pickled may be in it.
            workers: how many are planned on one machine.
            device: what they compute on.
        """
