"""The progress of a job as a bar with the time left, and its notes above it; in a terminal or in a notebook."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from tqdm import tqdm

from deltarank.results import count, duration, escape, listing, size
from deltarank.runtime.plan import Plan
from deltarank.runtime.progress import ProgressListener

_BAR = "{desc}{percentage:3.0f} % |{bar}| {postfix}"


class ProgressNotes(ProgressListener):
    """Prints the plan and the notes of a job on stderr, above a bar where there is one."""

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


class ProgressBar(ProgressNotes):
    """A bar of tqdm on stderr: share of the work, time left, the current matrix; removed when it is closed.

    In a notebook with ipywidgets it is a widget:

        with deltarank.ProgressBar() as progress:
            results = deltarank.compare("base", "finetune", progress=progress)
    """

    def __init__(self) -> None:
        self._bar: Any = None
        self._left = ""
        self._transfer = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def began(self, name: str) -> None:
        self._draw().set_postfix_str(self._beside(name))

    def stage(self, name: str) -> None:
        self._left = ""
        self.began(name)

    def streamed(self, received: int, whole: int, speed: float) -> None:
        self._transfer = shown_transfer(received, whole, speed)

    def finished(self, name: str, seconds_left: float, share_done: float) -> None:
        self._left = f"{duration(seconds_left)} left"
        bar = self._draw()
        bar.n = whole_percents(share_done) / 100
        bar.set_postfix_str(self._beside(name))

    def close(self) -> None:
        """Removes the bar."""
        if self._bar is not None:
            self._bar.close()

    def _draw(self) -> Any:
        if self._bar is None:
            options = {"total": 1.0, "bar_format": _BAR, "leave": False, "file": sys.stderr, "dynamic_ncols": True}
            self._bar = _kind_of_bar()(**options)
        return self._bar

    def _beside(self, name: str) -> str:
        return "  ".join(part for part in (self._transfer, self._left, end_of_name(name)) if part)


def whole_percents(share_done: float) -> int:
    """At most 99: a command that has not ended has something left to do."""
    return int(min(max(100 * share_done, 0.0), 99.0))


def shown_transfer(received: int, whole: int, speed: float) -> str:
    """Received bytes and their speed."""
    return f"{size(received)} of {size(whole)} at {size(speed)}/s"


def end_of_name(name: str, most: int = 48) -> str:
    """The end of a tensor's name, which contains the layer and the module."""
    shown = escape(name)
    return shown if len(shown) <= most else f"…{shown[1 - most :]}"


def _kind_of_bar() -> Any:
    """tqdm's widget in a notebook that can show it, else its line of text."""
    shell = sys.modules.get("IPython")
    if shell is None or type(shell.get_ipython()).__name__ != "ZMQInteractiveShell":
        return tqdm
    from tqdm.notebook import IProgress, tqdm_notebook

    return tqdm if IProgress is None else tqdm_notebook


def _say_above_bars(sentence: str) -> None:
    tqdm.write(escape(sentence), file=sys.stderr)
