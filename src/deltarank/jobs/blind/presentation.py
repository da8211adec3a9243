"""In which order a person sees the pairs, and which text stands as A: both follow from the voter's random identity.

The page computes the same (`shuffled` in vote.js), so that a score can check that votes fit their page.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

from deltarank.results import BlindKey, Question

T = TypeVar("T")


def presentation(key: BlindKey, voter: str) -> list[tuple[str, int]]:
    """(pair, number of the text that stands as A) in the order of the screens: first all ABX, then all preferences.

    Half of the pairs of each question have text 1 as A. Which model wrote text 1 is a coin of the key.
    """
    screens = []
    for question in Question:
        pairs = [pair.id for pair in key.pairs if pair.question is question]
        sides = [1 + i % 2 for i in range(len(pairs))]
        ordered = shuffled(pairs, f"{voter}:{question}:order"), shuffled(sides, f"{voter}:{question}:sides")
        screens += list(zip(*ordered, strict=True))
    return screens


def shuffled(items: Sequence[T], seed: str) -> list[T]:
    """Fisher and Yates's shuffle. Its numbers are the first 32 bits of SHA-256(seed:i), modulo i + 1."""
    result = list(items)
    for i in range(len(result) - 1, 0, -1):
        j = int.from_bytes(hashlib.sha256(f"{seed}:{i}".encode()).digest()[:4]) % (i + 1)
        result[i], result[j] = result[j], result[i]
    return result
