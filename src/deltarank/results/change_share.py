"""Which part of the whole change the measured matrices hold, for sentences about what a LoRA keeps of it."""

from __future__ import annotations

import math
from collections.abc import Iterable

from deltarank.results.formatting import percent
from deltarank.results.matrix import Skipped

NEARLY_WHOLE = 0.99
"""If the measured matrices hold a smaller share of the change, the first sentence says so."""


def measured_share(skipped: Iterable[Skipped]) -> float:
    """The share of the change in all tensors that both checkpoints have."""
    return max(1.0 - math.fsum(each.share for each in skipped if each.share is not None), 0.0)


def change_in_words(share: float) -> str:
    """What is kept or lost, as the end of a sentence: "the change in the weights"."""
    if share >= NEARLY_WHOLE:
        return "the change in the weights"
    return f"the change in the measured matrices, which hold {percent(share)} of the whole change"
