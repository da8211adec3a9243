"""The time estimate: the plan at first, then the plan scaled by the measured speed. The clock is a fake."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltarank.runtime import PartOfJob, ProgressListener, TimeEstimate


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


def reports(pieces: Sequence[float], *, slowdown: float = 1.0, start_up: float = 0.0) -> list[tuple[float, float]]:
    """The (seconds left, share done) after each piece, of which each takes `slowdown` times the planned seconds."""
    now, heard = 0.0, Heard()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deltarank.runtime.time_estimate.time.perf_counter", lambda: now)
        estimate = TimeEstimate(heard, sum(pieces))
        now += start_up
        for piece in pieces:
            now += slowdown * piece
            estimate.add("a", piece)
    return heard.heard


pieces_of_work = st.lists(st.floats(0.01, 1000.0), min_size=1, max_size=20)


@given(pieces=pieces_of_work, start_up=st.floats(0, 10))
def test_work_that_goes_as_planned_is_foretold_exactly_whatever_the_start_took(
    pieces: list[float], start_up: float
) -> None:
    for number, (left, share) in enumerate(reports(pieces, start_up=start_up), start=1):
        assert left == pytest.approx(sum(pieces[number:]), abs=1e-6 * sum(pieces))
        assert share == pytest.approx(sum(pieces[:number]) / sum(pieces))


@given(pieces=pieces_of_work, slowdown=st.floats(1.0, 50.0))
def test_the_time_left_lies_between_the_plan_and_the_measured_speed(pieces: list[float], slowdown: float) -> None:
    for number, (left, _) in enumerate(reports(pieces, slowdown=slowdown), start=1):
        planned = sum(pieces[number:])
        assert planned * (1 - 1e-6) - 1e-6 <= left <= planned * slowdown * (1 + 1e-6) + 1e-6


def test_until_a_twentieth_is_done_the_plan_is_blended_with_the_measured_speed() -> None:
    slow = reports([10.0] * 100, slowdown=6.0)
    # The first piece took 50 s more than planned; 10 of them count as start-up. 10 of the 50 s are done that are
    # needed to trust the speed alone.
    assert slow[0][0] == pytest.approx(990.0 * (1 + 0.2 * (50.0 / 10.0 - 1)))
    assert slow[4][0] == pytest.approx(950.0 * 290.0 / 50.0)
    assert slow[-1][0] == 0.0


def test_a_start_of_half_a_minute_does_not_make_hours_of_a_short_job() -> None:
    """One piece in a thousand took as long as a hundred of them should."""
    first, *_ = reports([0.3] * 1000, start_up=30.0)
    assert first[0] < 2.5 * 300


def test_resumed_work_does_not_count_towards_the_speed(clock: list[float]) -> None:
    heard = Heard()
    estimate = TimeEstimate(heard, 1000.0, resumed=400.0)
    estimate.add("kept", 100.0, resumed=True)
    clock[0] += 310.0
    estimate.add("a", 100.0)

    assert heard.heard == [(pytest.approx(500.0), 0.5), (pytest.approx(3 * 400.0), 0.6)]


def test_a_share_is_never_more_than_all_and_a_time_never_negative(clock: list[float]) -> None:
    heard = Heard()
    for planned in (0.0, 1.0):
        TimeEstimate(heard, planned).add("a", 5.0)

    assert heard.heard == [(0.0, 1.0), (0.0, 1.0)]


def test_the_parts_of_a_job_report_in_the_time_of_the_whole() -> None:
    heard = Heard()
    first, second = PartOfJob(heard, seconds=30.0, after=70.0), PartOfJob(heard, before=30.0, seconds=70.0)
    first.finished("a", 15.0, 0.5)
    first.finished("b", 0.0, 1.0)
    second.finished("c", 35.0, 0.5)
    second.finished("d", 0.0, 1.0)

    expected = [(85.0, 0.15), (70.0, 0.3), (35.0, 0.65), (0.0, 1.0)]
    assert heard.heard == [(pytest.approx(left), pytest.approx(share)) for left, share in expected]
