"""A run as it goes on: a bar with the time left where there is a terminal, else a line now and then.

Imports torch by way of `deltarank.compare`: only a verb that is running imports this.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

from deltarank.cli.streams import one_line, say
from deltarank.results import count, duration, size
from deltarank.runtime import Plan, ProgressListener

SECONDS_BETWEEN_LINES = 30.0
"""In a log that nobody watches, more lines than this hide the others."""

_BAR = "{desc}{percentage:3.0f} % |{bar}| {postfix}"


@contextmanager
def watching(quiet: bool) -> Iterator[ProgressListener]:
    """The progress that suits this stderr. What is said after it stands on a line of its own."""
    if quiet or sys.stderr is None:  # None: closed by the shell
        yield ProgressListener()
    elif not sys.stderr.isatty():
        yield Lines()
    else:
        bar = Bar()
        try:
            yield bar
        finally:
            bar.close()


class _Spoken(ProgressListener):
    """Tells the plan and what is worth knowing beforehand."""

    def planned(self, plan: Plan) -> None:
        known = plan.to_plain()
        _say_above_bars(
            f"{count(len(known['steps']), 'matrix', 'matrices')} to measure, {size(known['read_bytes'])} to read, "
            f"{_about(known['seconds'])}."
        )

    def resumed(self, finished: int) -> None:
        _say_above_bars(f"Going on with an earlier run: {count(finished, 'tensor')} of it kept.")

    def noted(self, sentence: str) -> None:
        _say_above_bars(sentence)

    def warned(self, sentence: str) -> None:
        _say_above_bars(f"Note: {sentence}")


class Bar(_Spoken):
    """One line that is drawn again: share of the work, time left, the matrix in hand."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None
        self._left = ""
        self._line = ""

    def began(self, name: str) -> None:
        self._draw().set_postfix_str(self._beside(name))

    def streamed(self, received: int, whole: int, speed: float) -> None:
        self._line = _streamed(received, whole, speed)

    def finished(self, name: str, seconds_left: float, share_done: float) -> None:
        self._left = f"{duration(seconds_left)} left"
        bar = self._draw()
        bar.n = min(max(share_done, 0.0), 1.0)
        bar.set_postfix_str(self._beside(name))

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _draw(self) -> tqdm:
        if self._bar is None:
            self._bar = tqdm(total=1.0, bar_format=_BAR, leave=False, file=sys.stderr, dynamic_ncols=True)
        return self._bar

    def _beside(self, name: str) -> str:
        return "  ".join(part for part in (self._line, self._left, _tail(name)) if part)


class Lines(_Spoken):
    """A plain line at most every half minute."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last = clock()
        self._line = ""

    def streamed(self, received: int, whole: int, speed: float) -> None:
        self._line = f", {_streamed(received, whole, speed)}"

    def finished(self, name: str, seconds_left: float, share_done: float) -> None:
        if self._clock() - self._last >= SECONDS_BETWEEN_LINES:
            self._last = self._clock()
            say(f"{100 * min(share_done, 1.0):.0f} % done{self._line}, {_about(seconds_left)} left, at {_tail(name)}")


def _streamed(received: int, whole: int, speed: float) -> str:
    """Bytes and their speed, as a line under load shows them."""
    return f"{size(received)} of {size(whole)} at {size(speed)}/s"


def _about(seconds: float) -> str:
    return f"about {duration(seconds)}" if seconds >= 1 else duration(seconds)


def _say_above_bars(sentence: str) -> None:
    tqdm.write(one_line(sentence), file=sys.stderr)


def _tail(name: str, most: int = 48) -> str:
    """The end of a tensor's name: layer and module stand there."""
    shown = one_line(name)
    return shown if len(shown) <= most else f"…{shown[1 - most :]}"
