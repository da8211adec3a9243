"""What a job reports while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deltarank.runtime.plan import Plan


class ProgressListener:
    """Receives the progress of a job. Override the methods that you need; by default they do nothing."""

    def opening(self, models: Sequence[str]) -> None:
        """The arguments were checked, and the headers of these models are read."""

    def planned(self, plan: Plan) -> None:
        """The plan, before anything is read."""

    def writing(self, folder: Path) -> None:
        """All arguments and inputs were checked, and results are written to this folder from now on."""

    def resumed(self, finished: int) -> None:
        """An interrupted run is resumed, of which so many parts (tensors, answers, scores) are finished."""

    def noted(self, sentence: str) -> None:
        """How the job proceeds: what is downloaded or streamed, what it waits for."""

    def streamed(self, received: int, whole: int, speed: float) -> None:
        """Bytes received so far, bytes to receive in all, and bytes a second. Called before `finished`."""

    def warned(self, sentence: str) -> None:
        """Something that the user should know before the job ends."""

    def began(self, name: str) -> None:
        """Work on a tensor has begun."""

    def stage(self, name: str) -> None:
        """Work of another kind has begun, of which no time is known: an audit, a verdict, a picture."""

    def finished(self, name: str, seconds_left: float, share_done: float) -> None:
        """Work on a tensor has ended. `share_done` is the share of all work, from 0 to 1."""


class PartOfJob(ProgressListener):
    """Reports the progress of a job that is a part of a longer one, in the time and the share of the whole.

    The plan of the part is not passed on: its time would be taken for that of the whole.

    Args:
        before, seconds, after: planned for what comes before the part, for the part, and for what follows it.
    """

    def __init__(self, whole: ProgressListener, *, before: float = 0.0, seconds: float, after: float = 0.0) -> None:
        self._whole, self._before, self._seconds, self._after = whole, before, seconds, after

    def writing(self, folder: Path) -> None:
        self._whole.writing(folder)

    def resumed(self, finished: int) -> None:
        self._whole.resumed(finished)

    def noted(self, sentence: str) -> None:
        self._whole.noted(sentence)

    def streamed(self, received: int, whole: int, speed: float) -> None:
        self._whole.streamed(received, whole, speed)

    def warned(self, sentence: str) -> None:
        self._whole.warned(sentence)

    def began(self, name: str) -> None:
        self._whole.began(name)

    def stage(self, name: str) -> None:
        self._whole.stage(name)

    def finished(self, name: str, seconds_left: float, share_done: float) -> None:
        done = self._before + share_done * self._seconds
        planned = max(self._before + self._seconds + self._after, 1e-9)
        self._whole.finished(name, seconds_left + self._after, done / planned)
