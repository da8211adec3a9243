"""Progress on stderr: a bar with the time left on a terminal, a line now and then elsewhere, nothing when quiet."""

import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any

import pytest

import deltarank
from deltarank.cli.progress import Lines, watching
from deltarank.runtime import ProgressBar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class FakePlan:
    def to_plain(self) -> dict[str, Any]:
        return {"steps": [{}, {}], "read_bytes": 2_500_000, "seconds": 90.0}


@contextmanager
def a_terminal() -> Iterator[Terminal]:
    """Not a fixture: pytest puts its own stderr back before a test begins."""
    with redirect_stderr(Terminal()) as shown:
        yield shown


def test_a_terminal_gets_a_bar_with_the_time_left() -> None:
    with a_terminal() as terminal, watching(quiet=False) as progress:
        assert isinstance(progress, ProgressBar)
        progress.began("model.layers.0.mlp.up_proj.weight")
        progress.finished("model.layers.0.mlp.up_proj.weight", 95.0, 0.25)
        progress.began("model.layers.1.mlp.up_proj.weight")

    assert "25 %" in terminal.getvalue()
    assert "1 min 35 s left" in terminal.getvalue()
    assert "layers.1.mlp.up_proj.weight" in terminal.getvalue()


def test_the_bar_of_the_library_is_removed_at_its_end() -> None:
    with a_terminal() as terminal, deltarank.ProgressBar() as progress:
        progress.finished("model.norm.weight", 1.0, 0.5)
        progress.warned("The base was guessed.")

    assert "50 %" in terminal.getvalue()
    assert "Note: The base was guessed." in terminal.getvalue()
    assert terminal.getvalue().split("\r")[-1].strip() == ""


def test_the_bar_is_cleared_when_the_run_fails() -> None:
    def fail() -> None:
        with watching(quiet=False) as progress:
            progress.began("a")
            raise KeyboardInterrupt

    with a_terminal() as terminal, pytest.raises(KeyboardInterrupt):
        fail()

    assert terminal.getvalue().split("\r")[-1].strip() == ""


def test_a_log_gets_a_line_every_half_minute(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    lines = Lines(clock=lambda: now)
    for step in range(100):
        now += 1.0
        lines.finished(f"layer.{step}", 100.0 - step, (step + 1) / 100)
    shown = capsys.readouterr().err.splitlines()

    assert len(shown) == 3
    assert shown[0] == "30 % done, about 1 min 11 s left, at layer.29"


def test_a_command_that_goes_on_never_shows_all_of_the_work_as_done(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    lines = Lines(clock=lambda: now)
    now = 40.0
    lines.finished("the last tensor", 0.2, 1.0)
    now = 60.0
    lines.stage("the summary")
    now = 100.0
    lines.stage("the report")
    assert capsys.readouterr().err.splitlines() == [
        "99 % done, under 1 s left, at the last tensor",
        "99 % done, now the report",
    ]

    with a_terminal() as terminal, watching(quiet=False) as progress:
        progress.finished("the last tensor", 0.2, 0.999)
        progress.stage("the report")
        drawn = terminal.getvalue().rstrip().split("\r")[-1]
    assert "100 %" not in terminal.getvalue()
    assert drawn.startswith(" 99 %")
    assert drawn.endswith("the report")


def test_what_is_streamed_is_shown_with_its_speed(capsys: pytest.CaptureFixture[str]) -> None:
    with a_terminal() as terminal, watching(quiet=False) as progress:
        progress.noted("Streaming 141 GB of `org/name` without saving it.")
        progress.streamed(12_300_000_000, 141_000_000_000, 118_000_000)
        progress.finished("layers.1", 1100.0, 0.1)
    assert "Streaming 141 GB of `org/name`" in terminal.getvalue()
    assert "12.3 GB of 141 GB at 118 MB/s" in terminal.getvalue()
    assert "18 min 20 s left" in terminal.getvalue()

    now = 0.0
    lines = Lines(clock=lambda: now)
    now = 40.0
    lines.streamed(12_300_000_000, 141_000_000_000, 118_000_000)
    lines.finished("layers.1", 1100.0, 0.1)
    shown = capsys.readouterr().err.splitlines()
    assert shown == ["10 % done, 12.3 GB of 141 GB at 118 MB/s, about 18 min 20 s left, at layers.1"]


def test_quiet_prints_nothing() -> None:
    with a_terminal() as terminal, watching(quiet=True) as progress:
        progress.planned(FakePlan())  # type: ignore[arg-type]
        progress.warned("A remark.")
        progress.resumed(3)
        progress.began("a")
        progress.finished("a", 1.0, 1.0)

    assert terminal.getvalue() == ""


def test_plan_resumption_and_warnings_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with watching(quiet=False) as progress:
        progress.planned(FakePlan())  # type: ignore[arg-type]
        progress.resumed(1)
        progress.warned("The delta is as large as the weights.")

    assert capsys.readouterr().err.splitlines() == [
        "2 matrices to measure, 2.5 MB to read. Estimated time: 1 min 30 s.",
        "Resuming an interrupted run: 1 part is finished.",
        "Note: The delta is as large as the weights.",
    ]


def test_hostile_names_do_not_reach_the_terminal() -> None:
    with a_terminal() as terminal, watching(quiet=False) as progress:
        progress.began("\x1b[2J\x07\u202e" + "x" * 500)

    assert not {"\x07", "\u202e"} & set(terminal.getvalue())
    assert "\x1b[2J" not in terminal.getvalue()
