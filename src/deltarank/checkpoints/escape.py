"""Text from checkpoints is untrusted: how it is quoted in messages, notes and reasons."""

from __future__ import annotations

from collections.abc import Sequence

MAX_LENGTH = 96


def quoted(text: object, *, max_length: int = MAX_LENGTH) -> str:
    """Any text on one line in backquotes, escaped, and shortened in the middle.

    Control characters, bidirectional marks, zero-width characters and lone surrogates are escaped, so a name can
    neither forge a line of a message nor hide a part of it.
    """
    return f"`{_shorten(_escape(_shorten(str(text), max_length)), max_length)}`"


def _escape(text: str) -> str:
    return "".join(c if c.isprintable() and c != "`" else _escape_one(c) for c in text)


def _escape_one(character: str) -> str:
    return "\\x60" if character == "`" else character.encode("unicode_escape").decode("ascii")


def _shorten(text: str, max_length: int) -> str:
    if len(text) <= max_length:
        return text
    head = (max_length - 1) // 2
    return f"{text[:head]}…{text[-(max_length - 1 - head) :]}"


def dimensions(shape: Sequence[int]) -> str:
    """(4096, 11008) -> "4096 x 11008"; () -> "a single number"."""
    return " x ".join(str(side) for side in shape) or "a single number"
