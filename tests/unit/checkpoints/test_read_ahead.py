"""Blocks that are fetched before they are read: right bytes, few requests, bounded memory, no standstill."""

import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from deltarank.checkpoints.hub import read_ahead as read_ahead_module
from deltarank.checkpoints.hub.backoff import TransferError
from deltarank.checkpoints.hub.read_ahead import ReadAhead

CONTENT = random.Random(1).randbytes(100_000)


class Line:
    """Where the bytes come from. `gate`, while closed, holds every fetch back."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.broken = False

    def fetch(self, file: str, start: int, view: memoryview) -> None:
        self.asked.append((start, start + view.nbytes))
        assert self.gate.wait(10)
        if self.broken:
            raise ConnectionError("down")
        view[:] = CONTENT[start : start + view.nbytes]


def read(ahead: ReadAhead, start: int, length: int) -> bytes:
    buffer = bytearray(length)
    ahead.read_into("x", start, memoryview(buffer))
    return bytes(buffer)


@pytest.mark.parametrize("announced", ["all", "none", "others", "each twice"])
@pytest.mark.parametrize("readers", [1, 4])
def test_any_order_of_reads_gives_the_bytes(announced: str, readers: int) -> None:
    chance = random.Random(readers)
    parts = [(i * 1000, chance.randrange(1, 1000)) for i in range(99)]
    line = Line()
    ahead = ReadAhead(line.fetch, budget=8000, block=2000, fetchers=3)
    for start, length in parts:
        if announced in ("all", "each twice"):
            ahead.prefetch("x", start, length)
        if announced == "each twice":
            ahead.prefetch("x", start + length // 2, length)
        if announced == "others":
            ahead.prefetch("x", start + 500, 600)
    chance.shuffle(parts)

    def is_right(part: tuple[int, int]) -> bool:
        return read(ahead, *part) == CONTENT[part[0] : sum(part)]

    with ThreadPoolExecutor(readers) as pool:
        assert all(pool.map(is_right, parts, timeout=60))
    ahead.close()


HUNDREDS = [(start, 100) for start in range(100, 30_100, 100)]
SHUFFLED = [(start, 1000) for start in (1000, 3000, 5000, 2000, 4000, 6000)]
"""Matrices of one shape are measured together, and do not lie together."""


@pytest.mark.parametrize(
    ("ranges", "requests"),
    [
        pytest.param(HUNDREDS, [(100, 10_100), (10_100, 20_100), (20_100, 30_100)], id="blocks"),
        pytest.param(SHUFFLED, [(1000, 7000)], id="any order"),
        pytest.param([(1000, 5000), (6100, 1000), (7400, 1000)], [(1000, 7100), (7400, 8400)], id="small gaps"),
    ],
)
def test_adjacent_ranges_are_one_request_and_nothing_is_fetched_twice(
    ranges: list[tuple[int, int]], requests: list[tuple[int, int]]
) -> None:
    line = Line()
    ahead = ReadAhead(line.fetch, budget=40_000, block=10_000, fetchers=1)
    line.gate.clear()
    ahead.prefetch("x", 0, 100)  # while this is under way, the others gather
    while not line.asked:
        pass
    for start, length in ranges:
        ahead.prefetch("x", start, length)
    line.gate.set()
    for start, length in [(0, 100), *ranges]:
        assert read(ahead, start, length) == CONTENT[start : start + length]
    ahead.close()
    assert line.asked == [(0, 100), *requests]


def test_memory_is_bounded_whatever_is_prefetched() -> None:
    line = Line()
    ahead = ReadAhead(line.fetch, budget=8000, block=2000, fetchers=4)
    ahead.prefetch("x", 0, len(CONTENT))
    for start in range(0, len(CONTENT), 500):
        assert read(ahead, start, 500) == CONTENT[start : start + 500]
    assert ahead.most_held <= 8000 + 2000  # one reader may be before its fetchers
    ahead.close()


def test_a_reader_does_not_wait_for_blocks_that_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The budget is full of blocks that were announced and never asked for; in time they make room."""
    monkeypatch.setattr(read_ahead_module, "STALE_READS", 20)
    line = Line()
    ahead = ReadAhead(line.fetch, budget=8000, block=2000, fetchers=2)
    ahead.prefetch("x", 0, 8000)
    while sum(end - start for start, end in line.asked) < 8000:
        pass
    ahead.prefetch("x", 50_000, 40_000)
    for start in range(50_000, 90_000, 500):
        assert read(ahead, start, 500) == CONTENT[start : start + 500]
    assert ahead.most_held <= 10_000
    assert read(ahead, 0, 8000) == CONTENT[:8000]
    ahead.close()


def test_a_failed_fetch_fails_only_its_reader() -> None:
    line = Line()
    ahead = ReadAhead(line.fetch, budget=8000, block=2000, fetchers=2)
    line.broken = True
    ahead.prefetch("x", 0, 2000)
    with pytest.raises(ConnectionError, match="down"):
        read(ahead, 0, 10)
    line.broken = False
    assert read(ahead, 0, 2000) == CONTENT[:2000]
    ahead.close()


def test_dropped_blocks_are_fetched_again() -> None:
    line = Line()
    ahead = ReadAhead(line.fetch)
    ahead.prefetch("x", 0, 1000)
    assert read(ahead, 0, 10) == CONTENT[:10]
    ahead.drop("x")
    assert read(ahead, 10, 10) == CONTENT[10:20]
    ahead.close()
    assert line.asked == [(0, 1000), (10, 20)]


def test_closing_ends_the_threads_and_frees_the_memory() -> None:
    before = threading.active_count()
    ahead = ReadAhead(Line().fetch, fetchers=3)
    ahead.prefetch("x", 0, 1000)
    assert threading.active_count() > before
    ahead.close()
    ahead.close()
    ahead.prefetch("x", 0, 1000)
    assert threading.active_count() == before


def test_a_waiting_reader_fails_when_the_program_stops() -> None:
    line = Line()
    line.gate.clear()
    ahead = ReadAhead(line.fetch, fetchers=1)
    ahead.prefetch("x", 0, 1000)
    while not line.asked:
        pass
    failed: list[type[BaseException]] = []

    def work() -> None:
        try:
            read(ahead, 0, 10)
        except TransferError as error:
            failed.append(type(error))

    reader = threading.Thread(target=work)
    reader.start()
    ahead.stop()
    reader.join(5)
    assert failed == [TransferError]
    line.gate.set()
    ahead.close()


def test_threads_are_few_and_begin_when_needed() -> None:
    ahead = ReadAhead(Line().fetch, fetchers=2)
    assert read(ahead, 0, 10) == CONTENT[:10]
    names = Counter(thread.name for thread in threading.enumerate())
    assert names["deltarank-ahead"] == 0
    ahead.close()
