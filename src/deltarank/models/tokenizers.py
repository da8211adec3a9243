"""Whether two tokenizers mean the same by the same number."""

from __future__ import annotations

from typing import Any

from deltarank.results import count, listing


def changed_token_ids(ours: Any, theirs: Any) -> list[str]:
    """Tokens that both know by unlike numbers: a text in the one's numbers is another text to the other."""
    here, there = ours.get_vocab(), theirs.get_vocab()
    return sorted(token for token, number in here.items() if there.get(token, number) != number)


def difference(ours: Any, theirs: Any) -> str | None:
    """How their tokenizer differs from ours, in words; None if it does not."""
    here, there = ours.get_vocab(), theirs.get_vocab()
    moved = changed_token_ids(ours, theirs)
    added, missing = sorted(here.keys() - there.keys()), sorted(there.keys() - here.keys())
    ways = [
        f"{count(len(tokens), 'token')} {how} (such as {_shown(tokens)})"
        for tokens, how in (
            (moved, "have another number"),
            (added, "are only in the finetune's"),
            (missing, "are only in its"),
        )
        if tokens
    ]
    if not ways and getattr(ours, "chat_template", None) != getattr(theirs, "chat_template", None):
        ways = ["the chat template is another"]
    return listing(ways) or None


def _shown(tokens: list[str]) -> str:
    return listing([ascii(token)[:40] for token in tokens], most=2)
