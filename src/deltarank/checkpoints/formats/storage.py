"""How numbers are stored that are not plain, and how far that moved them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Storage:
    """A format that rounds more coarsely than a plain type of floating point does.

    name      for people: "FP8 (e4m3, blocks of 128 x 128)"
    error     ||W - Q(W)|| / ||W||, the relative error that rounding to it makes of normally distributed weights; 0
              where nothing was rounded
    obstacle  why it is not decoded, if it is not
    """

    name: str
    error: float = 0.0
    obstacle: str | None = None
