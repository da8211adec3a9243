"""Ranks that servers accept, and the one that a headline is about."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Iterator

from deltarank.errors import UsageError

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
    """The rank nearest to 64; where `largest_side` is below 512, nearest to a thirty-second of it.

    The verdicts of `compare` and `outputs` are about this rank. The page and the terminal open with it, for one run,
    for several and for a fleet. At rank 64, a toy with sides of 256 loses next to nothing, and its headline would say
    so.

    Args:
        ranks: those to choose from: all that were measured, those of the outputs, or the one that a plan chose.
        largest_side: the largest of the matrices' smaller sides.
    """
    preferred = PREFERRED_RANK if largest_side >= SMALL_SIDE else max(largest_side / 32, 1)
    return min(ranks, key=lambda rank: abs(math.log2(rank / preferred)))


Ranks = int | str | Iterable[int | str]
"""Ranks as people write them: 64, "8,16,64", [8, 16]."""

_LIMIT = 2**31


def parse_ranks(given: Ranks) -> tuple[int, ...]:
    """The ranks in ascending order, each once.

    Raises:
        UsageError: (slug "bad-ranks") there is none, or one is not a positive integer.
    """
    ranks = {_rank(word) for word in _words(given)}
    if not ranks:
        raise _bad_ranks("No rank was given.")
    return tuple(sorted(ranks))


def _words(given: object) -> Iterator[object]:
    if isinstance(given, str):
        yield from given.replace(",", " ").split() or [given]
    elif isinstance(given, Iterable):
        for each in given:
            yield from _words(each)
    else:
        yield given


def _rank(word: object) -> int:
    # `int` alone would also accept "1_0", digits of other scripts and 1.5, and raise for thousands of digits.
    if isinstance(word, str) and word.isascii() and word.isdigit() and len(word) < 11:
        word = int(word)
    if hasattr(word, "__index__") and not isinstance(word, bool) and 1 <= (rank := operator.index(word)) < _LIMIT:
        return rank
    raise _bad_ranks(f"{word!r:.80} is not a rank; ranks are positive integers.")


def _bad_ranks(message: str) -> UsageError:
    return UsageError(message, cure="Give ranks such as 16,64,128.", slug="bad-ranks")
