"""Answers made ready to be shown side by side: cleaned, and cut at one length."""

from __future__ import annotations

import re
from collections.abc import Sequence
from unicodedata import combining

from deltarank.jobs.blind.options import LONGEST_TEXT

_READ = 4 * LONGEST_TEXT
"""Characters of an answer that are looked at: more are never shown."""

_WORD_BOUNDARY = 0.6
"""A text is cut at a space if there is one in the last 40 %: some scripts have none."""

_JOINERS = "\u200c\u200d"
"""Invisible, but Persian, Indic scripts and emoji need them between two of their characters."""

_MOST_MARKS = 6
"""Combining marks in succession. More of them cover the lines above and below."""


def clean(text: str) -> str:
    """Plain text: line ends alike, and no control, zero-width or direction characters. "…" ends what is too long.

    Markdown stays as it was written, for both models alike.
    """
    lines = re.split(r"\r\n?|[\n\v\f\u0085\u2028\u2029]", text[:_READ])
    shown = re.sub(r"\n{3,}", "\n\n", "\n".join(map(_clean_line, lines))).strip()
    return f"{shown} …" if len(text) > _READ else shown


def _clean_line(line: str) -> str:
    seen = [c for c in re.sub(r"\s", " ", line) if c.isprintable() or c in _JOINERS]
    around = zip(["", *seen], seen, [*seen[1:], ""], strict=False)
    kept = (c for before, c, after in around if c not in _JOINERS or (_may_be_joined(before) and _may_be_joined(after)))
    marks, shown = 0, []
    for c in kept:
        marks = marks + 1 if combining(c) else 0
        shown.append(c if marks <= _MOST_MARKS else "")
    return "".join(shown).rstrip()


def _may_be_joined(character: str) -> bool:
    return character > "\x7f" and character not in _JOINERS


def cut_alike(texts: Sequence[str], most: int) -> tuple[tuple[str, ...], int]:
    """Texts cut at the same length, and that length in characters.

    Each loses at least its last word, even the shortest: whether a text ended by itself cannot be seen.
    """
    limit = min(most, min(map(len, texts)) - 1)
    return tuple(_cut(text, limit) for text in texts), limit


def _cut(text: str, limit: int) -> str:
    """At most `limit` characters, up to the end of a word."""
    head = text[:limit]
    space = max(head.rfind(" "), head.rfind("\n"))
    if text[limit : limit + 1].strip() and space >= _WORD_BOUNDARY * limit:
        head = head[:space]
    return f"{head.rstrip()} …"
