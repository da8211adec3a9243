"""Pictures are the same with a drawing process and without, whatever happens to it; and it never outlives its block."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from builders import model, results

from deltarank.report import drawing_process
from deltarank.report.charts.vega import Spec
from deltarank.report.drawing.draw import _current, start_drawing
from deltarank.report.page.posters import posters
from deltarank.report.view.build import page_data

TINY: Spec = {"data": {"values": [{"a": 1}, {"a": 2}]}, "mark": "point", "encoding": {"x": {"field": "a"}}}
NO_CHART: Spec = {"mark": "no such mark"}

pytestmark = pytest.mark.usefixtures("no_drawing_process")

HOLDS_ONE = """
import signal, sys, time
from deltarank.report import drawing_process
from deltarank.report.drawing.draw import _current
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what it runs in the background
try:
    with drawing_process():
        print(_current()._process.pid, flush=True)
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


@pytest.fixture
def alone() -> bytes:
    """Drawn without a drawing process."""
    with ThreadPoolExecutor(1) as elsewhere:  # another thread has none
        return elsewhere.submit(lambda: start_drawing(TINY)()).result()


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with drawing_process():
        yield _current()._process


def test_pictures_are_the_same_with_a_drawing_process(process: subprocess.Popen[bytes]) -> None:
    made = posters(page_data([results(model(layers=2))]))
    started = [start_drawing(picture) for picture in made.values()]
    with ThreadPoolExecutor(1) as elsewhere:  # another thread has no drawing process
        alone = list(elsewhere.map(lambda picture: start_drawing(picture)(), made.values()))

    assert [finish() for finish in started] == alone
    assert process.poll() is None


def test_a_thread_that_is_done_leaves_the_process_of_another_alone(alone: bytes) -> None:
    is_open, may_end = threading.Event(), threading.Event()

    def open_and_end() -> None:
        with drawing_process():
            is_open.set()
            may_end.wait(60)

    with ThreadPoolExecutor(1) as other_thread:
        other = other_thread.submit(open_and_end)
        is_open.wait(60)
        with drawing_process():
            started = [start_drawing(TINY) for _ in range(3)]
            may_end.set()
            other.result()

            assert _current()._process.poll() is None
            assert [finish() for finish in started] == [alone] * 3


def test_charts_larger_than_a_pipe_buffer_are_drawn(process: subprocess.Popen[bytes]) -> None:
    points = {"data": {"values": [{"a": i} for i in range(9_000)]}, "mark": "point"}
    chart = points | {"encoding": {"x": {"field": "a", "type": "quantitative"}}}
    drawn = [_current().request(chart) for _ in range(3)]

    assert all(len(svg.result() or "") > 500_000 for svg in drawn)


@pytest.mark.parametrize("after", [0.0, 1.0])
def test_this_process_draws_where_the_drawing_process_died(
    process: subprocess.Popen[bytes], alone: bytes, after: float, capfd: pytest.CaptureFixture[str]
) -> None:
    time.sleep(after)  # while it starts, and when it waits
    process.kill()
    started = [start_drawing(TINY) for _ in range(3)]

    assert [finish() for finish in started] == [alone] * 3
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(sys.platform != "linux", reason="limits of address space")
def test_an_engine_that_cannot_start_crashes_the_drawing_process_alone(tmp_path: Path) -> None:
    """V8 reserves more address space than this process may have, and ends the process that asked for it."""
    folder = tmp_path / "report"
    script = HAS_LITTLE_SPACE.format(path=repr(sys.path), folder=repr(str(folder)))
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["no-drawing"] * 2, "")
    assert not folder.exists()


@pytest.mark.parametrize("executable", ["no python", "/bin/echo"])
def test_this_process_draws_where_a_drawing_process_cannot_start(
    alone: bytes, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], executable: str
) -> None:
    monkeypatch.setattr(sys, "executable", executable)
    with drawing_process():
        assert start_drawing(TINY)() == alone
    assert capfd.readouterr() == ("", "")


def test_an_invalid_chart_raises(process: subprocess.Popen[bytes]) -> None:
    bad, good = start_drawing(NO_CHART), start_drawing(TINY)
    with pytest.raises(ValueError, match="Vega-Lite"):
        bad()

    assert good().startswith(b"\x89PNG")


def test_it_ends_with_the_block() -> None:
    with drawing_process():
        process = _current()._process
        start_drawing(TINY)
    assert process.returncode is not None
    assert _current() is None


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("fate", [signal.SIGKILL, signal.SIGINT], ids=["killed", "stopped by the user"])
def test_it_does_not_outlive_its_parent(fate: signal.Signals) -> None:
    """Killed alone; Ctrl-C goes to the whole group."""
    command = subprocess.Popen(
        [sys.executable, "-c", HOLDS_ONE], stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    with command:
        try:
            assert command.stdout is not None
            process = int(command.stdout.readline())
            if fate is signal.SIGKILL:
                command.kill()
            else:
                os.killpg(command.pid, fate)
            _, errors = command.communicate(timeout=60)
        finally:
            command.kill()  # does nothing where it has ended

    assert (command.returncode, errors) == (130 if fate is signal.SIGINT else -fate, b"")
    deadline = time.monotonic() + 60
    while _runs(process):
        assert time.monotonic() < deadline, "it still runs"
        time.sleep(0.05)


def _runs(process: int) -> bool:
    """A zombie does not count: it has ended, and its parent has not waited for it."""
    state = Path("/proc", str(process), "stat")
    if state.parent.parent.joinpath("self").exists():
        return state.exists() and state.read_text().rsplit(")", 1)[1].split()[0] != "Z"
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
