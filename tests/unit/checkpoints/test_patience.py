"""How long is waited, and when a transfer is given up."""

from __future__ import annotations

import itertools
import time
from email.utils import formatdate

import pytest

from deltarank.checkpoints.hub.retry import LONGEST_TOLD, TRIES, GaveUpError, Patience, told_wait


def patience() -> tuple[Patience, list[float], list[str]]:
    slept: list[float] = []
    said: list[str] = []
    return Patience(said.append, slept.append), slept, said


def test_waits_double_and_end_after_about_a_minute() -> None:
    waits, slept, _ = patience()
    for _ in range(TRIES - 1):
        waits.wait("timed out")
    with pytest.raises(GaveUpError, match=f"timed out, {TRIES} times in a row"):
        waits.wait("timed out")
    assert len(slept) == TRIES - 1
    assert all(1.1 * a < b for a, b in itertools.pairwise(slept))
    assert 20 < sum(slept) < 90


def test_bytes_that_arrive_clear_the_count() -> None:
    waits, slept, _ = patience()
    for _ in range(5 * TRIES):
        waits.wait("cut")
        waits.renew()
    assert max(slept) < 1


def test_a_told_wait_is_kept_is_no_failure_and_is_said() -> None:
    waits, slept, said = patience()
    for _ in range(2 * TRIES):
        waits.wait("it answers 429", 30.0)
    assert slept == [30.0] * 2 * TRIES
    assert said[0] == "The Hub asks to wait 30 s (it answers 429)."


def test_nobody_waits_for_ever() -> None:
    waits, slept, _ = patience()
    for _ in range(int(LONGEST_TOLD / 600)):
        waits.wait("it answers 429", 600.0)
    with pytest.raises(GaveUpError, match="asks to wait"):
        waits.wait("it answers 429", 600.0)
    assert sum(slept) <= LONGEST_TOLD
    with pytest.raises(GaveUpError):
        patience()[0].wait("it answers 503", 1e9)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": " 7 "}, 7.0),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "-3"}, None),
        ({"Retry-After": "9" * 40}, 999999999.0),
        ({"Retry-After": formatdate(0, usegmt=True)}, 0.0),
        ({"RateLimit": '"resolvers";r=0;t=55'}, 56.0),
        ({"RateLimit": '"resolvers"; r=12; t=55'}, None),
        ({"RateLimit": "nonsense;t"}, None),
    ],
)
def test_what_an_answer_asks_for(headers: dict[str, str], seconds: float | None) -> None:
    assert told_wait(headers) == seconds


def test_a_date_is_told_from_now() -> None:
    found = told_wait({"Retry-After": formatdate(time.time() + 100, usegmt=True)})
    assert found is not None
    assert 95 < found <= 100
