"""Draws Vega-Lite charts as PNG, with a second process where there is one.

The engine of vl_convert takes 0.35 s to start and holds Python's lock while it works. A drawing process starts on a
second core while torch is imported, and draws one picture while this process turns another into pixels. Where the
engine cannot start, it kills its process with a trap (seen with an address space of 64 GB under `ulimit -v`): then the
drawing process dies, and not the one that has results to print.

Each thread has a drawing process of its own. So answers come in the order of the requests, and no thread ends the
process that another is using.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from deltarank.errors import OutputError
from deltarank.report.charts.vega import Spec

SCALE = 2

_CRASHES = {
    -getattr(signal, name) for name in ("SIGTRAP", "SIGILL", "SIGABRT", "SIGSEGV", "SIGBUS") if hasattr(signal, name)
}
"""Exit statuses of a process whose V8 gave up."""

_thread = threading.local()


@contextmanager
def drawing_process() -> Iterator[None]:
    """Keeps a drawing process ready for the pictures that this thread draws in the block; a nested block shares it.

    The process holds about 80 MB, is idle until it gets a request, prints nothing, and ends with the block. If it
    cannot start, or is killed, pictures are drawn in this process.
    """
    process = None if _current() else _start()
    if process is None:
        yield
        return
    _thread.process = process
    try:
        yield
    finally:
        _thread.process = None
        process.end()


def start_drawing(chart: Spec) -> Callable[[], bytes]:
    """Starts drawing in this thread's drawing process, if there is one.

    Returns:
        A function that waits for the picture and returns it as PNG. It raises OutputError where the engine crashed
        the drawing process, and ValueError where the chart is not valid.
    """
    process = _current()
    request = process.request(chart) if process else None

    def finish() -> bytes:
        import vl_convert

        svg = request.result() if request else None
        if svg is None:
            _raise_if_crashed(process)
            return bytes(vl_convert.vegalite_to_png(chart, scale=SCALE, allowed_base_urls=[]))
        return bytes(vl_convert.svg_to_png(svg, scale=SCALE))

    return finish


def start_bundle() -> None:
    """Has this thread's drawing process, if any, make the page's Vega script (1.5 s), unless that has begun."""
    process = _current()
    if process and process.bundle is None:
        process.bundle = process.request(None)


def finish_bundle() -> str | None:
    """The Vega script of this thread's drawing process; None if there is none.

    Raises:
        OutputError: the engine crashed the drawing process.
    """
    process = _current()
    script = process.bundle.result() if process and process.bundle else None
    if script is None:
        _raise_if_crashed(process)
    return script


def _current() -> _DrawingProcess | None:
    """This thread's drawing process."""
    return getattr(_thread, "process", None)


def _raise_if_crashed(process: _DrawingProcess | None) -> None:
    if process and process.has_crashed:
        raise OutputError(
            "Cannot draw: the JavaScript engine of vl_convert (V8) crashed when it started.",
            cure="It reserves a large address space: raise the limit (`ulimit -v unlimited`), or write the report on "
            "another machine with `deltarank report RUN`. results.json is complete.",
            slug="no-drawing",
        )


class _DrawingProcess:
    """The process, and one thread each for writing to it and reading from it: neither waits for the other's pipe."""

    bundle: Future[str | None] | None = None

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._writer = ThreadPoolExecutor(1, "deltarank-draw-write")
        self._reader = ThreadPoolExecutor(1, "deltarank-draw-read")
        self._has_ended = False

    @property
    def has_crashed(self) -> bool:
        """Whether the engine crashed it, as it would crash any process that tries."""
        if self._has_ended:
            with suppress(subprocess.TimeoutExpired):
                return self._process.wait(timeout=60) in _CRASHES
        return False

    def request(self, chart: Spec | None) -> Future[str | None]:
        """The chart as SVG, or the Vega script for None. The result is None if that failed."""
        self._writer.submit(self._send, json.dumps(chart).encode() + b"\n")
        return self._reader.submit(self._receive)

    def _send(self, line: bytes) -> None:
        assert self._process.stdin is not None
        with suppress(OSError, ValueError):  # it has died or was ended: the reader will notice
            self._process.stdin.write(line)
            self._process.stdin.flush()

    def _receive(self) -> str | None:
        assert self._process.stdout is not None
        try:
            line = self._process.stdout.readline()
            self._has_ended = not line
            answer = json.loads(line)
        except (OSError, ValueError):
            return None
        return answer if isinstance(answer, str) else None

    def end(self) -> None:
        """Kills the process: it holds nothing that could be lost."""
        self._process.kill()
        self._process.wait()
        for executor in (self._writer, self._reader):
            executor.shutdown(cancel_futures=True)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(OSError):  # closing flushes what was not sent, to a dead process
                pipe.close()


def _start() -> _DrawingProcess | None:
    if not sys.executable or getattr(sys, "frozen", False):  # a frozen program would start itself again
        return None
    command = [sys.executable, "-P", str(Path(__file__).with_name("worker_process.py"))]
    try:
        return _DrawingProcess(
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        )
    except OSError:
        return None
