"""Text from checkpoints is untrusted: how it is quoted in messages, notes and reasons."""

from __future__ import annotations

from collections.abc import Sequence

from deltarank.results import escape, shorten

MAX_LENGTH = 96


def quoted(text: object, *, max_length: int = MAX_LENGTH) -> str:
    """Any text on one line in backquotes, escaped, and shortened in the middle.

    Control characters, bidirectional marks, zero-width characters and lone surrogates are escaped, so a name can
    neither forge a line of a message nor hide a part of it.
    """
    escaped = escape(shorten(str(text), most=max_length)).replace("`", "\\x60")
    return f"`{shorten(escaped, most=max_length)}`"


def dimensions(shape: Sequence[int]) -> str:
    """(4096, 11008) -> "4096 x 11008"; () -> "a single number"."""
    return " x ".join(str(side) for side in shape) or "a single number"
