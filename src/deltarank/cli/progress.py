"""The progress of a run on stderr: a bar with the time left on a terminal, else a line every half minute.

Importing this module imports torch (by way of `deltarank.runtime`), so a command imports it only when it runs.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from deltarank.cli.streams import say
from deltarank.results import count, duration, escape, listing, size
from deltarank.runtime import Plan, ProgressListener

SECONDS_BETWEEN_LINES = 30.0
"""In a log file, more frequent lines would hide the others."""

_BAR = "{desc}{percentage:3.0f} % |{bar}| {postfix}"


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
        bar = Bar()
        try:
            yield bar
        finally:
            bar.close()


class _NotesOnStderr(ProgressListener):
    """Prints the plan, and the notes of a run."""

    _folder = ""

    def opening(self, models: Sequence[str]) -> None:
        _say_above_bars(f"Opening {listing(list(models))}.")

    def planned(self, plan: Plan) -> None:
        known = plan.to_plain()
        _say_above_bars(
            f"{count(len(known['steps']), 'matrix', 'matrices')} to measure, {size(known['read_bytes'])} to read. "
            f"Estimated time: {duration(known['seconds'])}."
        )

    def writing(self, folder: Path) -> None:
        if not self._folder:  # a folder inside of it is opened later
            self._folder = str(folder)
            _say_above_bars(f"Writing to {folder}.")

    def resumed(self, finished: int) -> None:
        _say_above_bars(f"Resuming an interrupted run: {count(finished, 'part is', 'parts are')} finished.")

    def noted(self, sentence: str) -> None:
        _say_above_bars(sentence)

    def warned(self, sentence: str) -> None:
        _say_above_bars(f"Note: {sentence}")


class Bar(_NotesOnStderr):
    """A progress bar: share of the work, time left, the current matrix."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None
        self._left = ""
        self._transfer = ""

    def began(self, name: str) -> None:
        self._draw().set_postfix_str(self._beside(name))

    def stage(self, name: str) -> None:
        self._left = ""
        self.began(name)

    def streamed(self, received: int, whole: int, speed: float) -> None:
        self._transfer = _streamed(received, whole, speed)

    def finished(self, name: str, seconds_left: float, share_done: float) -> None:
        self._left = f"{duration(seconds_left)} left"
        bar = self._draw()
        bar.n = _whole_percents(share_done) / 100
        bar.set_postfix_str(self._beside(name))

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _draw(self) -> tqdm:
        if self._bar is None:
            self._bar = tqdm(total=1.0, bar_format=_BAR, leave=False, file=sys.stderr, dynamic_ncols=True)
        return self._bar

    def _beside(self, name: str) -> str:
        return "  ".join(part for part in (self._transfer, self._left, _tail(name)) if part)


class Lines(_NotesOnStderr):
    """A plain line, at most one in so many seconds."""

    def __init__(self, seconds: float = SECONDS_BETWEEN_LINES, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._last = clock()
        self._transfer = ""
        self._percents = 0

    def streamed(self, received: int, whole: int, speed: float) -> None:
        self._transfer = f", {_streamed(received, whole, speed)}"

    def finished(self, name: str, seconds_left: float, share_done: float) -> None:
        self._percents = _whole_percents(share_done)
        if self._is_time():
            self._say(f"{_about(seconds_left)} left, at {_tail(name)}")

    def stage(self, name: str) -> None:
        if self._is_time():
            self._say(f"now {_tail(name)}")

    def _is_time(self) -> bool:
        return self._clock() - self._last >= self._seconds

    def _say(self, rest: str) -> None:
        self._last = self._clock()
        say(f"{self._percents} % done{self._transfer}, {rest}")


def _whole_percents(share_done: float) -> int:
    """At most 99: a command that has not ended has something left to do."""
    return int(min(max(100 * share_done, 0.0), 99.0))


def _streamed(received: int, whole: int, speed: float) -> str:
    """Received bytes and their speed."""
    return f"{size(received)} of {size(whole)} at {size(speed)}/s"


def _about(seconds: float) -> str:
    return f"about {duration(seconds)}" if seconds >= 1 else duration(seconds)


def _say_above_bars(sentence: str) -> None:
    tqdm.write(escape(sentence), file=sys.stderr)


def _tail(name: str, most: int = 48) -> str:
    """The end of a tensor's name, which contains the layer and the module."""
    shown = escape(name)
    return shown if len(shown) <= most else f"…{shown[1 - most :]}"
