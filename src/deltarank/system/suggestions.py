"""What a user probably meant: the known name that is spelled most like the one that was given."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_MOST = 3


def near_names(word: str, known: Iterable[str], *, most: int = _MOST, cutoff: float = 0.6) -> list[str]:
    """The known names spelled most like the word, the nearest first; case does not count.

    Args:
        cutoff: the least ratio of matching characters, from 0 to 1 (Ratcliff and Metzener 1988, as in `difflib`).
    """
    folded = {name.casefold(): name for name in known}
    return [folded[near] for near in difflib.get_close_matches(word.casefold(), folded, n=most, cutoff=cutoff)]


def did_you_mean(names: Iterable[str]) -> str:
    """A question that offers these names, with a space before it; empty if there are none."""
    quoted = [f"{name!a}" for name in names]
    if not quoted:
        return ""
    *first, last = quoted
    return f" Did you mean {', '.join(first)} or {last}?" if first else f" Did you mean {last}?"
