"""The progress of a training: a bar on a terminal, else a line every few seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

from deltarank.results import duration, figure

SECONDS_BETWEEN_LINES = 5.0

OnStep = Callable[[float], None]
"""Called after each step, with its loss."""


@contextmanager
def watched_steps(name: str, steps: int, say: Callable[[str], None], *, progress: bool) -> Iterator[OnStep]:
    """Shows how far a training is, on stderr.

    Args:
        say: prints a line.
        progress: whether anything is shown.
    """
    if not progress or sys.stderr is None:  # None: closed by the shell
        yield lambda loss: None
    elif not sys.stderr.isatty():
        yield StepLines(name, steps, say)
    else:
        with tqdm(total=steps, desc=name, unit="step", leave=False, file=sys.stderr) as bar:
            yield lambda loss: _advance(bar, loss)


def both(one: OnStep, other: OnStep) -> OnStep:
    """Calls one after the other."""

    def call(loss: float) -> None:
        one(loss)
        other(loss)

    return call


def _advance(bar: tqdm, loss: float) -> None:
    bar.set_postfix_str(f"loss {loss:.2f}", refresh=False)
    bar.update()


class StepLines:
    """A line every few seconds."""

    def __init__(
        self, name: str, steps: int, say: Callable[[str], None], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._name, self._steps, self._say, self._clock = name, steps, say, clock
        self._started = self._last = clock()
        self._done = 0

    def __call__(self, loss: float) -> None:
        self._done += 1
        now = self._clock()
        if now - self._last >= SECONDS_BETWEEN_LINES and self._done < self._steps:
            self._last = now
            left = (now - self._started) / self._done * (self._steps - self._done)
            self._say(
                f"  {self._name}: {self._done:,} of {self._steps:,} steps, loss {figure(loss)}, "
                f"about {duration(left)} left"
            )
