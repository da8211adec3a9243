"""Text from checkpoints is hostile: how it is shown in messages, notes and reasons."""

from __future__ import annotations

from collections.abc import Sequence

MOST = 96


def shown(text: object, *, most: int = MOST) -> str:
    """Any text in backquotes, on one line, escaped and cut in the middle: both ends of a name tell something.

    Control characters, marks that turn the direction of writing, zero-width characters and lone surrogates are
    shown as escapes, so a name cannot forge a line of a message or hide a part of it.
    """
    return f"`{_shorten(_escape(_shorten(str(text), most)), most)}`"


def _escape(text: str) -> str:
    return "".join(c if c.isprintable() and c != "`" else _escape_one(c) for c in text)


def _escape_one(character: str) -> str:
    return "\\x60" if character == "`" else character.encode("unicode_escape").decode("ascii")


def _shorten(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    head = (most - 1) // 2
    return f"{text[:head]}…{text[-(most - 1 - head) :]}"


def dimensions(shape: Sequence[int]) -> str:
    """(4096, 11008) -> "4096 x 11008"; () -> "a single number"."""
    return " x ".join(str(side) for side in shape) or "a single number"
