"""Two answers word by word: what they share in order, and what differs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import accumulate

# A word takes the space before it. Scripts without spaces are compared letter by letter, punctuation sign by sign.
_LETTER = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\u0e00-\u0e7f"
_WORD = re.compile(rf"\s*(?:[{_LETTER}]|(?:(?![{_LETTER}])\w)+|[^\w\s])|\s+$")

Block = tuple[int, int, int]


@dataclass(frozen=True)
class Difference:
    """A text beside another: words[b : b + n] are the other's words[a : a + n] for each block (a, b, n).

    `alike` is how many words from the start are the same.
    """

    words: tuple[str, ...]
    blocks: tuple[Block, ...]
    alike: int

    def same(self, reference: Sequence[str]) -> bool:
        """Whether the two are the same word for word."""
        return self.alike == len(self.words) == len(reference)

    def spans(self, reference: Sequence[str]) -> list[tuple[int, int, int, int]]:
        """The blocks as (start, end, start, end) in the reference's text and in this one.

        Counted as scripts in pages count: a letter beyond U+FFFF is two.
        """
        left, right = _ends(reference), _ends(self.words)
        return [(left[a], left[a + n], right[b], right[b + n]) for a, b, n in self.blocks]


def _ends(words: Sequence[str]) -> list[int]:
    """Where each word begins, and where the last one ends."""
    return [0, *accumulate(len(word.encode("utf-16-le", "surrogatepass")) // 2 for word in words)]


def words_of(text: str) -> tuple[str, ...]:
    """Words that join to the text."""
    return tuple(_WORD.findall(text))


def difference(reference: Sequence[str], other: Sequence[str]) -> Difference:
    """How `other` differs from `reference`, both as words."""
    left, right = ([word.strip() for word in words] for words in (reference, other))
    found = SequenceMatcher(None, left, right, autojunk=False).get_matching_blocks()
    blocks = _settled([(block.a, block.b, block.size) for block in found if block.size], len(left), len(right))
    alike = blocks[0][2] if blocks and blocks[0][:2] == (0, 0) else 0
    return Difference(tuple(other), tuple(blocks), alike)


def _settled(blocks: list[Block], left: int, right: int) -> list[Block]:
    """Without the islands: a shared run that is shorter than what differs on either side of it was met by chance."""
    kept: list[Block] = []
    for i, (a, b, n) in enumerate(blocks):
        end_a, end_b = (kept[-1][0] + kept[-1][2], kept[-1][1] + kept[-1][2]) if kept else (0, 0)
        next_a, next_b = blocks[i + 1][:2] if i + 1 < len(blocks) else (left, right)
        before, after = max(a - end_a, b - end_b), max(next_a - a - n, next_b - b - n)
        if n > min(before, after):
            kept.append((a, b, n))
    return kept
