"""Ranks that servers accept, and the one that a headline is about."""

from __future__ import annotations

import math
from collections.abc import Iterable

SERVABLE_RANKS: tuple[int, ...] = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The sizes of vLLM's slots (`--max-lora-rank`, read 2026-11). A slot serves adapters of its rank and of lower ones."""

DEFAULT_RANKS: tuple[int, ...] = SERVABLE_RANKS[1:]
"""The ranks that are measured by default: those that every server accepts."""

DEFAULT_OUTPUTS_RANKS: tuple[int, ...] = (16, 64, 256)
"""The ranks whose outputs are measured by default: few, because each takes a pass of a model."""

PREFERRED_RANK = 64
"""The rank that hosts of many adapters use, and that a headline is about."""

SMALL_SIDE = 512
"""Of a square matrix with a smaller side, a LoRA of rank 64 has more than a quarter of the parameters."""


def slot_for(rank: int) -> int | None:
    """The rank of the smallest slot of vLLM that serves this rank; None if there is none."""
    return next((slot for slot in SERVABLE_RANKS if slot >= rank), None)


def slot_sentence(rank: int) -> str:
    """What vLLM does with a rank that is not the size of a slot; "" for one that is."""
    slot = slot_for(rank)
    if slot == rank:
        return ""
    return (
        f"vLLM serves rank {rank} in a slot of rank {slot}."
        if slot
        else f"vLLM serves no rank above {SERVABLE_RANKS[-1]}."
    )


def headline_rank(ranks: Iterable[int], largest_side: int) -> int:
    """The rank nearest to 64; where no matrix has a side of 512, nearest to a thirty-second of the largest side.

    Every command, page and card states this rank first. At rank 64 a toy with sides of 256 loses next to nothing, and
    its headline would say so.

    Args:
        ranks: those that were measured.
        largest_side: of the smaller sides of all matrices.
    """
    preferred = PREFERRED_RANK if largest_side >= SMALL_SIDE else max(largest_side / 32, 1)
    return min(ranks, key=lambda rank: abs(math.log2(rank / preferred)))
