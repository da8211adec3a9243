"""Vega-Lite into PNGs: by a helper that was started ahead, as far as it can help, or else here.

vl_convert's engine takes 0.35 s to start, and holds Python's lock while it works. A helper is a process of its own: it
starts on a second core while torch is imported, and draws one picture while another is painted here. And where the
engine cannot start, it ends its process with a trap (seen: an address space of 64 GB under `ulimit -v`): that is the
helper then, and not whoever has results to print.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from deltarank.errors import OutputError
from deltarank.report.charts.vega import Spec

SCALE = 2

_TRAPS = {
    -getattr(signal, name) for name in ("SIGTRAP", "SIGILL", "SIGABRT", "SIGSEGV", "SIGBUS") if hasattr(signal, name)
}
"""How a process ends that V8 could not go on in."""

_helpers: list[_Helper] = []
"""The one at hand, if any, is the last."""


@contextmanager
def drawing_ahead() -> Iterator[None]:
    """Has a helper ready for the pictures that are drawn inside: the one at hand, if there is one.

    It holds about 80 MB, is idle until it is asked, prints nothing, and ends with the block. Where none can be
    started, and when it is killed, pictures are drawn as they are without it.
    """
    helper = None if _helpers else _started()
    if helper is None:
        yield
        return
    _helpers.append(helper)
    try:
        yield
    finally:
        _helpers.remove(helper)
        helper.end()


def begin_drawing(chart: Spec) -> Callable[[], bytes]:
    """Has the drawing begun, if there is a helper. What comes back gives the PNG, and waits for it.

    That raises OutputError where the engine gives up, if there was a helper to find it out.
    """
    helper = _helpers[-1] if _helpers else None
    drawn = helper.asked(chart) if helper else None

    def finished() -> bytes:
        import vl_convert

        svg = drawn.result() if drawn is not None else None
        if svg is None:
            _refuse_if_trapped(helper)
            return bytes(vl_convert.vegalite_to_png(chart, scale=SCALE, allowed_base_urls=[]))
        return bytes(vl_convert.svg_to_png(svg, scale=SCALE))

    return finished


def begin_script() -> None:
    """Has the page's script made, if there is a helper and it was not begun: that takes 1.5 s."""
    if _helpers and _helpers[-1].script is None:
        _helpers[-1].script = _helpers[-1].asked(None)


def finished_script() -> str | None:
    """What came of it, if it was begun.

    Raises:
        OutputError: the engine gave up.
    """
    begun = _helpers[-1].script if _helpers else None
    script = begun.result() if begun is not None else None
    if script is None:
        _refuse_if_trapped(_helpers[-1] if _helpers else None)
    return script


def _refuse_if_trapped(helper: _Helper | None) -> None:
    if helper and helper.was_trapped:
        raise OutputError(
            "nothing can be drawn: the engine of vl_convert (V8) gave up, and took its process with it.",
            cure="It reserves much address space when it starts: lift such a limit (`ulimit -v unlimited`), or draw "
            "the page elsewhere, with `deltarank report RUN`: results.json is whole.",
            slug="no-drawing",
        )


class _Helper:
    """The process, and a thread for each way of talking with it: neither waits for the other's pipe."""

    script: Future[str | None] | None = None

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._asking = ThreadPoolExecutor(1, "deltarank-asks")
        self._hearing = ThreadPoolExecutor(1, "deltarank-hears")
        self._is_over = False

    @property
    def was_trapped(self) -> bool:
        """Whether the engine ended it, as it would end whoever tried in its place."""
        if self._is_over:
            with suppress(subprocess.TimeoutExpired):
                return self._process.wait(timeout=60) in _TRAPS
        return False

    def asked(self, chart: Spec | None) -> Future[str | None]:
        """The chart as SVG, or the script; None if nothing came of it."""
        self._asking.submit(self._ask, json.dumps(chart).encode() + b"\n")
        return self._hearing.submit(self._hear)

    def _ask(self, line: bytes) -> None:
        assert self._process.stdin is not None
        with suppress(OSError, ValueError):  # it has died, or was ended: whoever listens will notice
            self._process.stdin.write(line)
            self._process.stdin.flush()

    def _hear(self) -> str | None:
        assert self._process.stdout is not None
        try:
            line = self._process.stdout.readline()
            self._is_over = not line
            answer = json.loads(line)
        except (OSError, ValueError):
            return None
        return answer if isinstance(answer, str) else None

    def end(self) -> None:
        """At once: it holds nothing that could be lost."""
        self._process.kill()
        self._process.wait()
        for talking in (self._asking, self._hearing):
            talking.shutdown(cancel_futures=True)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(OSError):  # what was not sent is sent now, to nobody
                pipe.close()


def _started() -> _Helper | None:
    if not sys.executable or getattr(sys, "frozen", False):  # a program that is no Python would start itself again
        return None
    command = [sys.executable, "-P", str(Path(__file__).with_name("worker_process.py"))]
    try:
        return _Helper(
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        )
    except OSError:
        return None
