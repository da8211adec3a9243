"""The progress of `outputs`: what an earlier process did is not taken for the speed of this one."""

from types import SimpleNamespace
from typing import Any

import pytest

from deltarank.jobs.outputs.progress import OutputsProgress
from deltarank.runtime import ProgressListener


class Reports(ProgressListener):
    """The (seconds left, share done) of each report."""

    def __init__(self) -> None:
        self.reports: list[tuple[float, float]] = []

    def finished(self, name: str, seconds_left: float, share_done: float) -> None:
        self.reports.append((seconds_left, share_done))


def test_work_of_an_earlier_process_does_not_shorten_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("deltarank.runtime.time_estimate.time.perf_counter", lambda: now)
    plan: Any = SimpleNamespace(seconds=100.0, time=SimpleNamespace(loading=10.0, answering=60.0, reading=30.0))
    listener = Reports()
    progress = OutputsProgress(listener, plan)
    progress.loaded("base", resumed=True)
    progress.answers("base", 6)(3, resumed=True)
    assert listener.reports[-1] == pytest.approx((60.0, 0.4))

    now = 30.0  # for one prompt, of which 10 s were planned, and 10 more to start
    progress.answers("base", 6)(1, resumed=False)
    assert listener.reports[-1] == pytest.approx((2 * 50.0, 0.5))
    now = 50.0
    progress.answers("base", 6)(2, resumed=False)
    progress.texts("base", 7)(7, resumed=False)
    assert listener.reports[-1] == pytest.approx((0.0, 1.0))


def test_the_summary_of_the_scores_is_a_part_of_the_work() -> None:
    time = SimpleNamespace(loading=10.0, answering=60.0, reading=20.0)
    plan: Any = SimpleNamespace(seconds=100.0, summary_seconds=10.0, time=time)
    listener = Reports()
    progress = OutputsProgress(listener, plan)
    progress.loaded("base", resumed=False)
    progress.answers("base", 6)(6, resumed=False)
    progress.texts("base", 7)(7, resumed=False)
    assert listener.reports[-1][1] == pytest.approx(0.9)
    progress.summarised("the summary")
    assert listener.reports[-1] == pytest.approx((0.0, 1.0))
