"""The time estimate: shares of the planned seconds, scaled by the time that the finished part has taken."""

import pytest

from deltarank.runtime import ProgressListener, TimeEstimate


class Heard(ProgressListener):
    def __init__(self) -> None:
        self.heard: list[tuple[float, float]] = []

    def finished(self, name: str, seconds_left: float, share_done: float) -> None:
        self.heard.append((seconds_left, share_done))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, as the only entry of a list."""
    now = [100.0]
    monkeypatch.setattr("deltarank.runtime.time_estimate.time.perf_counter", lambda: now[0])
    return now


def test_the_rest_takes_as_much_longer_as_the_first_part_did(clock: list[float]) -> None:
    heard = Heard()
    estimate = TimeEstimate(heard, 10.0)
    clock[0] += 4.0  # planned: 2
    estimate.add("a", 2.0)
    clock[0] += 6.0  # planned: 3
    estimate.add("b", 3.0)

    assert heard.heard == [(pytest.approx(16.0), 0.2), (pytest.approx(10.0), 0.5)]


def test_resumed_work_does_not_count_towards_the_speed(clock: list[float]) -> None:
    heard = Heard()
    estimate = TimeEstimate(heard, 10.0, resumed=4.0)
    estimate.add("kept", 1.0, resumed=True)
    clock[0] += 3.0
    estimate.add("a", 1.0)

    assert heard.heard == [(pytest.approx(5.0), 0.5), (pytest.approx(12.0), 0.6)]


def test_a_share_is_never_more_than_all_and_a_time_never_negative(clock: list[float]) -> None:
    heard = Heard()
    for planned in (0.0, 1.0):
        TimeEstimate(heard, planned).add("a", 5.0)

    assert heard.heard == [(0.0, 1.0), (0.0, 1.0)]
