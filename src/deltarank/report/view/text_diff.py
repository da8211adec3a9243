"""The difference of two answers, word by word."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import accumulate

# A word includes the space before it. Scripts without spaces are compared by letter, punctuation by sign.
_LETTER = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\u0e00-\u0e7f"
_WORD = re.compile(rf"\s*(?:[{_LETTER}]|(?:(?![{_LETTER}])\w)+|[^\w\s])|\s+$")

Block = tuple[int, int, int]


@dataclass(frozen=True)
class Difference:
    """A text and a reference: words[b : b + n] equal the reference's words[a : a + n] for each block (a, b, n)."""

    words: tuple[str, ...]
    blocks: tuple[Block, ...]
    same_first_words: int

    def is_same_as(self, reference: Sequence[str]) -> bool:
        """Whether the two have the same words."""
        return self.same_first_words == len(self.words) == len(reference)

    def spans(self, reference: Sequence[str]) -> list[tuple[int, int, int, int]]:
        """The blocks as (start, end, start, end) in the reference and in this text, in UTF-16 units as in scripts."""
        left, right = _ends(reference), _ends(self.words)
        return [(left[a], left[a + n], right[b], right[b + n]) for a, b, n in self.blocks]


def _ends(words: Sequence[str]) -> list[int]:
    """The start of each word, and the end of the last one."""
    return [0, *accumulate(len(word.encode("utf-16-le", "surrogatepass")) // 2 for word in words)]


def words_of(text: str) -> tuple[str, ...]:
    """The words of a text; they join to it."""
    return tuple(_WORD.findall(text))


def difference(reference: Sequence[str], other: Sequence[str]) -> Difference:
    """How `other` differs from `reference`, both given as words."""
    left, right = ([word.strip() for word in words] for words in (reference, other))
    matches = SequenceMatcher(None, left, right, autojunk=False).get_matching_blocks()
    blocks = _without_islands(
        [(block.a, block.b, block.size) for block in matches if block.size], len(left), len(right)
    )
    same = blocks[0][2] if blocks and blocks[0][:2] == (0, 0) else 0
    return Difference(tuple(other), tuple(blocks), same)


def _without_islands(blocks: list[Block], left: int, right: int) -> list[Block]:
    """Without shared runs that are shorter than what differs on either side of them: they match by chance."""
    kept: list[Block] = []
    for i, (a, b, n) in enumerate(blocks):
        end_a, end_b = (kept[-1][0] + kept[-1][2], kept[-1][1] + kept[-1][2]) if kept else (0, 0)
        next_a, next_b = blocks[i + 1][:2] if i + 1 < len(blocks) else (left, right)
        before, after = max(a - end_a, b - end_b), max(next_a - a - n, next_b - b - n)
        if n > min(before, after):
            kept.append((a, b, n))
    return kept
