"""The worker pool: every task has one result, whatever the number of workers; what a worker raises ends the pool."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch

from deltarank.checkpoints import Pair, Piece
from deltarank.runtime import ThreadPool


class NoFile:
    """A source that counts what is announced, and notices when its reads are interrupted."""

    def __init__(self) -> None:
        self.announced = 0
        self.interrupted = False

    def prefetch(self, file: str, start: int, length: int) -> None:
        self.announced += 1

    def interrupt(self) -> None:
        self.interrupted = True


@dataclass(frozen=True)
class Task:
    pair: Pair
    number: int


def tasks_of(number: int) -> tuple[NoFile, list[Task]]:
    source = NoFile()
    piece = Piece("w", "file", 0, torch.float32, (2, 2), source)  # type: ignore[arg-type]
    return source, [Task(Pair(f"w{i}", None, "w", piece, piece), i) for i in range(number)]


class Squarer:
    """Works on groups; remembers the thread that made it."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()

    def results(self, tasks: Sequence[Task]) -> list[int]:
        assert threading.get_ident() == self.thread
        return [task.number**2 for task in tasks]


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("size", [1, 3])
def test_every_task_has_its_result(workers: int, size: int) -> None:
    _, tasks = tasks_of(10)
    groups = [tasks[i : i + size] for i in range(0, len(tasks), size)]

    found = dict(ThreadPool(Squarer, workers).results(groups))

    assert found == {task: task.number**2 for task in tasks}


def test_no_tasks_are_no_results() -> None:
    assert list(ThreadPool(Squarer, 2).results([])) == []


def test_workers_share_the_threads_and_give_them_back() -> None:
    seen: list[int] = []

    class Counter(Squarer):
        def results(self, tasks: Sequence[Task]) -> list[int]:
            seen.append(torch.get_num_threads())
            return super().results(tasks)

    before = torch.get_num_threads()
    _, tasks = tasks_of(4)
    list(ThreadPool(Counter, 2).results([[task] for task in tasks]))

    assert set(seen) == {max(before // 2, 1)}
    assert torch.get_num_threads() == before


def test_what_a_worker_raises_comes_after_what_was_finished() -> None:
    class Breaker(Squarer):
        def results(self, tasks: Sequence[Task]) -> list[int]:
            if tasks[0].number == 2:
                raise OSError("disk full")
            return super().results(tasks)

    source, tasks = tasks_of(50)
    results = ThreadPool(Breaker, 1).results([[task] for task in tasks])

    assert [next(results)[0].number, next(results)[0].number] == [0, 1]
    with pytest.raises(OSError, match="disk full"):
        next(results)
    assert source.interrupted


def test_who_stops_listening_interrupts_the_reads() -> None:
    source, tasks = tasks_of(50)
    results = ThreadPool(Squarer, 2).results([[task] for task in tasks])
    next(results)
    results.close()  # type: ignore[attr-defined]

    assert source.interrupted
