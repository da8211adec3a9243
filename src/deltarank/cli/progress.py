"""The progress of a run on stderr: a bar with the time left on a terminal, else a line every half minute.

Importing this module imports torch (by way of `deltarank.runtime`), so a command imports it only when it runs.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from deltarank.cli.streams import say
from deltarank.results import duration
from deltarank.runtime import (
    ProgressBar,
    ProgressListener,
    ProgressNotes,
    end_of_name,
    shown_transfer,
    whole_percents,
)

SECONDS_BETWEEN_LINES = 30.0
"""In a log file, more frequent lines would hide the others."""


@contextmanager
def watching(quiet: bool, *, seconds: float = SECONDS_BETWEEN_LINES) -> Iterator[ProgressListener]:
    """The progress display that suits this stderr; at the end, the bar is removed.

    Args:
        seconds: the least time between two lines, where there is no terminal.
    """
    if quiet or sys.stderr is None:  # None: closed by the shell
        yield ProgressListener()
    elif not sys.stderr.isatty():
        yield Lines(seconds)
    else:
        with ProgressBar() as bar:
            yield bar


class Lines(ProgressNotes):
    """A plain line, at most one in so many seconds."""

    def __init__(self, seconds: float = SECONDS_BETWEEN_LINES, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._last = clock()
        self._transfer = ""
        self._percents = 0

    def streamed(self, received: int, whole: int, speed: float) -> None:
        self._transfer = f", {shown_transfer(received, whole, speed)}"

    def finished(self, name: str, seconds_left: float, share_done: float) -> None:
        self._percents = whole_percents(share_done)
        if self._is_time():
            self._say(f"{_about(seconds_left)} left, at {end_of_name(name)}")

    def stage(self, name: str) -> None:
        if self._is_time():
            self._say(f"now {end_of_name(name)}")

    def _is_time(self) -> bool:
        return self._clock() - self._last >= self._seconds

    def _say(self, rest: str) -> None:
        self._last = self._clock()
        say(f"{self._percents} % done{self._transfer}, {rest}")


def _about(seconds: float) -> str:
    return f"about {duration(seconds)}" if seconds >= 1 else duration(seconds)
