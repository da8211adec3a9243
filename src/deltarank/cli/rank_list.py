"""Ranks as people write them: `--ranks 8,16,64`, `--ranks 8 --ranks 64`, or both."""

from __future__ import annotations

from collections.abc import Iterable

from deltarank.errors import UsageError
from deltarank.results import DEFAULT_RANKS


def parse_ranks(texts: Iterable[str]) -> tuple[int, ...]:
    """The ranks in ascending order, each once; the default if there are none.

    Raises:
        UsageError (slug "bad-ranks"): a word is not a whole number of at least 1.
    """
    words = [word for text in texts for word in text.replace(",", " ").split() or [text]]
    return tuple(sorted({_rank(word) for word in words})) or DEFAULT_RANKS


def _rank(word: str) -> int:
    # `int` alone would also accept "1_0" and digits of other scripts, and raise for thousands of digits.
    if word.isascii() and word.isdigit() and len(word) < 10 and int(word) > 0:
        return int(word)
    raise UsageError(
        f"--ranks: {word!r} is not a rank; ranks are whole numbers from 1.",
        cure="Write them with commas, as in --ranks 16,64,128.",
        slug="bad-ranks",
    )
