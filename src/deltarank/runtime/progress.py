"""What a job reports while it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deltarank.runtime.plan import Plan


class ProgressListener:
    """Receives the progress of a job. Override the methods that you need; by default they do nothing."""

    def planned(self, plan: Plan) -> None:
        """The plan, before anything is read."""

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

    def finished(self, name: str, seconds_left: float, share_done: float) -> None:
        """Work on a tensor has ended. `share_done` is the share of all work, from 0 to 1."""
