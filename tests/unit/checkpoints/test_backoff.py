"""How long a failed transfer waits, and when it fails for good."""

import itertools
import time
from email.utils import formatdate

import pytest

from deltarank.checkpoints.hub.backoff import MAX_FAILURES, MAX_REQUESTED_DELAY, Backoff, TransferError, requested_delay


def a_backoff() -> tuple[Backoff, list[float], list[str]]:
    slept: list[float] = []
    said: list[str] = []
    return Backoff(said.append, slept.append), slept, said


def test_delays_double_and_end_after_about_a_minute() -> None:
    backoff, slept, _ = a_backoff()
    for _ in range(MAX_FAILURES - 1):
        backoff.wait("timed out")
    with pytest.raises(TransferError, match=f"timed out, {MAX_FAILURES} times in a row"):
        backoff.wait("timed out")
    assert len(slept) == MAX_FAILURES - 1
    assert all(1.1 * a < b for a, b in itertools.pairwise(slept))
    assert 20 < sum(slept) < 90


def test_received_bytes_reset_the_count() -> None:
    backoff, slept, _ = a_backoff()
    for _ in range(5 * MAX_FAILURES):
        backoff.wait("cut")
        backoff.reset()
    assert max(slept) < 1


def test_a_requested_delay_is_waited_noted_and_not_counted_as_a_failure() -> None:
    backoff, slept, said = a_backoff()
    for _ in range(2 * MAX_FAILURES):
        backoff.wait("it answers 429", 30.0)
    assert slept == [30.0] * 2 * MAX_FAILURES
    assert said[0] == "The Hub asks to wait 30 s (it answers 429)."


def test_delays_are_limited_in_total() -> None:
    backoff, slept, _ = a_backoff()
    for _ in range(int(MAX_REQUESTED_DELAY / 600)):
        backoff.wait("it answers 429", 600.0)
    with pytest.raises(TransferError, match="asks to wait"):
        backoff.wait("it answers 429", 600.0)
    assert sum(slept) <= MAX_REQUESTED_DELAY
    with pytest.raises(TransferError):
        a_backoff()[0].wait("it answers 503", 1e9)


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
def test_requested_delays_are_parsed(headers: dict[str, str], seconds: float | None) -> None:
    assert requested_delay(headers) == seconds


def test_a_date_becomes_seconds_from_now() -> None:
    found = requested_delay({"Retry-After": formatdate(time.time() + 100, usegmt=True)})
    assert found is not None
    assert 95 < found <= 100
