"""How pieces of a job report that they are finished.

`resumed`: an earlier process had done the work, so it says nothing about the speed of this one.
"""

from __future__ import annotations

from typing import Protocol


class OnFinished(Protocol):
    """Called with the number of tokens or prompts that a model has finished."""

    def __call__(self, number: int, /, *, resumed: bool) -> None: ...


class OnLoaded(Protocol):
    """Called with the name of a model that was loaded, or with `resumed` did not have to be."""

    def __call__(self, name: str, /, *, resumed: bool) -> None: ...
