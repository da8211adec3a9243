"""Ranks that servers accept, and the one that a headline is about."""

from __future__ import annotations

import math
from collections.abc import Iterable

SERVABLE_RANKS: tuple[int, ...] = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""LoRA ranks that vLLM accepts (its `max_lora_rank`, read 2026-11)."""

DEFAULT_RANKS: tuple[int, ...] = SERVABLE_RANKS[1:]
"""The ranks that are measured by default: those that every server accepts."""

DEFAULT_OUTPUTS_RANKS: tuple[int, ...] = (16, 64, 256)
"""The ranks whose outputs are measured by default: few, because each takes a pass of a model."""

PREFERRED_RANK = 64
"""The rank that hosts of many adapters use, and that a headline is about."""

SMALL_SIDE = 1024


def headline_rank(ranks: Iterable[int], largest_side: int) -> int:
    """The rank nearest to 64; where no matrix has a side of 1024, nearest to a thirty-second of the largest side.

    At rank 64 a toy with sides of 256 loses next to nothing, and its headline would say so.
    """
    preferred = PREFERRED_RANK if largest_side >= SMALL_SIDE else max(largest_side / 32, 1)
    return min(ranks, key=lambda rank: abs(math.log2(rank / preferred)))
