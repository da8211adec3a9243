"""Pictures with a helper at hand: the same as without, whatever becomes of it; and it is never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from builders import model, results

from deltarank.report import drawing_ahead
from deltarank.report.charts.vega import Spec
from deltarank.report.drawing.draw import _helpers, begin_drawing
from deltarank.report.page.posters import pictures
from deltarank.report.view.build import page_data

TINY: Spec = {"data": {"values": [{"a": 1}, {"a": 2}]}, "mark": "point", "encoding": {"x": {"field": "a"}}}
NO_CHART: Spec = {"mark": "no such mark"}

HOLDS_ONE = """
import sys, time
from deltarank.report import drawing_ahead
from deltarank.report.drawing.draw import _helpers
try:
    with drawing_ahead():
        print(_helpers[-1]._process.pid, flush=True)
        time.sleep(60)
except KeyboardInterrupt:
    sys.exit(130)
"""


HAS_LITTLE_SPACE = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))
sys.path[:0] = {path}
from builders import model, results
from deltarank.errors import OutputError
from deltarank.report import page_html, write_report
for draw in (lambda: write_report([results(model(layers=2))], {folder}), lambda: page_html([results(model(layers=2))])):
    try:
        draw()
    except OutputError as error:
        print(error.slug)
"""


@pytest.fixture(scope="module")
def alone() -> bytes:
    """Drawn without a helper."""
    return begin_drawing(TINY)()


@pytest.fixture
def helper() -> Iterator[subprocess.Popen[bytes]]:
    with drawing_ahead():
        yield _helpers[-1]._process


def test_pictures_are_the_same_with_a_helper(helper: subprocess.Popen[bytes]) -> None:
    page = page_data([results(model(layers=2))])
    helped = {name: begin_drawing(picture) for name, picture in pictures(page).items()}
    at_hand = _helpers.pop()
    try:
        alone = {name: begin_drawing(picture)() for name, picture in pictures(page).items()}
    finally:
        _helpers.append(at_hand)

    assert {name: finished() for name, finished in helped.items()} == alone
    assert helper.poll() is None


def test_it_draws_what_it_is_asked(helper: subprocess.Popen[bytes]) -> None:
    svg = _helpers[-1].asked(TINY).result()

    assert svg is not None
    assert svg.startswith("<svg")


def test_more_than_a_pipe_holds_goes_through(helper: subprocess.Popen[bytes]) -> None:
    points = {"data": {"values": [{"a": i} for i in range(9_000)]}, "mark": "point"}
    chart = points | {"encoding": {"x": {"field": "a", "type": "quantitative"}}}
    drawn = [_helpers[-1].asked(chart) for _ in range(3)]

    assert all(len(svg.result() or "") > 500_000 for svg in drawn)


@pytest.mark.parametrize("after", [0.0, 1.0])
def test_one_that_dies_is_not_missed(
    helper: subprocess.Popen[bytes], alone: bytes, after: float, capfd: pytest.CaptureFixture[str]
) -> None:
    time.sleep(after)  # while it starts, and when it waits
    helper.kill()
    drawn = [begin_drawing(TINY) for _ in range(3)]

    assert [finished() for finished in drawn] == [alone] * 3
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(sys.platform != "linux", reason="limits of address space")
def test_an_engine_that_cannot_start_traps_its_helper_and_nobody_else(tmp_path: Path) -> None:
    """V8 reserves more address space than this process may have, and ends the process that asked for it."""
    folder = tmp_path / "report"
    script = HAS_LITTLE_SPACE.format(path=repr(sys.path), folder=repr(str(folder)))
    told = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (told.returncode, told.stdout.split(), told.stderr) == (0, ["no-drawing"] * 2, "")
    assert not folder.exists()


def test_one_that_cannot_start_is_not_missed(alone: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no python"))
    with drawing_ahead():
        assert not _helpers
        assert begin_drawing(TINY)() == alone


def test_one_that_is_no_python_is_not_missed(
    alone: bytes, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/echo" if os.name == "posix" else "hostname")
    with drawing_ahead():
        assert begin_drawing(TINY)() == alone
    assert capfd.readouterr() == ("", "")


def test_what_cannot_be_drawn_is_said_as_without_it(helper: subprocess.Popen[bytes]) -> None:
    bad, good = begin_drawing(NO_CHART), begin_drawing(TINY)
    with pytest.raises(ValueError, match="Vega-Lite"):
        bad()

    assert good().startswith(b"\x89PNG")


def test_it_ends_with_the_block() -> None:
    with drawing_ahead():
        process = _helpers[-1]._process
        begin_drawing(TINY)
    assert process.returncode is not None
    assert not _helpers


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("fate", [signal.SIGKILL, signal.SIGINT], ids=["killed", "stopped by the user"])
def test_it_does_not_outlive_whoever_started_it(fate: signal.Signals) -> None:
    """Killed alone; Ctrl-C goes to the whole group."""
    command = subprocess.Popen(
        [sys.executable, "-c", HOLDS_ONE], stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    assert command.stdout is not None
    helper = int(command.stdout.readline())
    if fate is signal.SIGKILL:
        command.kill()
    else:
        os.killpg(command.pid, fate)
    _, said = command.communicate(timeout=60)

    assert (command.returncode, said) == (130 if fate is signal.SIGINT else -fate, b"")
    deadline = time.monotonic() + 60
    while _runs(helper):
        assert time.monotonic() < deadline, "it still runs"
        time.sleep(0.05)


def _runs(process: int) -> bool:
    """Not so if nobody has asked yet how it ended (a zombie)."""
    state = Path("/proc", str(process), "stat")
    if state.parent.parent.joinpath("self").exists():
        return state.exists() and state.read_text().rsplit(")", 1)[1].split()[0] != "Z"
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
