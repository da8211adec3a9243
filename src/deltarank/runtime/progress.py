"""What a run tells whoever watches it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deltarank.runtime.plan import Plan


class ProgressListener:
    """Overwrite what you want to hear of; by default nothing is done."""

    def planned(self, plan: Plan) -> None:
        """Before anything is read."""

    def resumed(self, finished: int) -> None:
        """So many tensors were found finished."""

    def noted(self, sentence: str) -> None:
        """How the run goes about it: what is downloaded or streamed, what it waits for."""

    def streamed(self, received: int, whole: int, speed: float) -> None:
        """Bytes that came over the line so far, of so many, at so many a second; before `finished`."""

    def warned(self, sentence: str) -> None:
        """Something that the user should know before the run ends."""

    def began(self, name: str) -> None:
        """A tensor is taken in hand."""

    def finished(self, name: str, seconds_left: float, share_done: float) -> None:
        """A tensor is done; `share_done` is of the work, 0 to 1."""
