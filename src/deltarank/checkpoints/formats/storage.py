"""How the numbers of a tensor are stored when they are not plain floating point."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StorageFormat:
    """A quantised format, or one that is not decoded.

    name             as shown to the user: "FP8 (e4m3, blocks of 128 x 128)"
    rounding_error   ||W - Q(W)|| / ||W|| of normally distributed weights W rounded to this format; 0 if nothing is
                     rounded
    obstacle         why it is not decoded; None if it is
    """

    name: str
    rounding_error: float = 0.0
    obstacle: str | None = None
