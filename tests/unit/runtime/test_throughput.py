"""Bytes and speed of a streamed run, from what the line's counters say."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from deltarank.checkpoints import Pair, Piece, Traffic
from deltarank.runtime import ProgressListener, Throughput


class Heard(ProgressListener):
    def __init__(self) -> None:
        self.said: list[tuple[int, int, float]] = []

    def streamed(self, received: int, whole: int, speed: float) -> None:
        self.said.append((received, whole, speed))


def a_side(traffic: Traffic | None) -> Any:
    """As much of a checkpoint as is looked at: two files of its own, and what is worked out from them."""
    return SimpleNamespace(source=object(), traffic=traffic, reference=SimpleNamespace(files={"a": 1, "b": 1}))


def a_pair(base: Any, finetune: Any, file: str) -> Pair:
    """100 bytes a side."""
    sides = (Piece("w", file, 0, torch.bfloat16, (5, 10), side.source) for side in (base, finetune))
    return Pair("w", None, "w", *sides)


def test_local_runs_hear_nothing() -> None:
    heard, sides = Heard(), (a_side(None), a_side(None))
    Throughput(sides, [a_pair(*sides, "a")], heard).report()

    assert heard.said == []


def test_bytes_count_from_the_start_of_the_work_and_speed_from_the_last_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr("deltarank.runtime.throughput.time.monotonic", lambda: now)
    traffic = Traffic(frozenset({"a"}))
    traffic.count(received=5000)  # headers
    heard, sides = Heard(), (a_side(traffic), a_side(None))
    meter = Throughput(sides, [a_pair(*sides, file) for file in ("a", "b", "worked out")], heard)
    for _ in range(60):
        now += 1.0
        traffic.count(received=1 if now <= 30 else 3)
        meter.report()

    # "b" lies in the cache, and the finetune on the disk.
    assert heard.said[0] == (1, 200, 1.0)
    assert heard.said[-1] == (120, 200, 3.0)


def test_more_than_was_foreseen_is_the_whole() -> None:
    traffic = Traffic(frozenset({"a"}))
    heard, sides = Heard(), (a_side(traffic), a_side(None))
    meter = Throughput(sides, [a_pair(*sides, "a")], heard)
    traffic.count(received=170)
    meter.report()

    assert heard.said[0][:2] == (170, 170)
