"""What the counts of prompt tokens say: a template or a system prompt adds tokens to the same text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from deltarank.openai_api import Exchange, read_usage
from deltarank.results import EndpointApi, count

FEWEST = 4
"""Prompts of which both endpoints must have counted the tokens."""


@dataclass(frozen=True)
class TokenCounts:
    """The counts of A and of B of the prompts that both were given, in pairs."""

    pairs: tuple[tuple[int, int], ...]
    api: EndpointApi

    @property
    def is_known(self) -> bool:
        return len(self.pairs) >= FEWEST and all(len({pair[i] for pair in self.pairs}) > 1 for i in (0, 1))

    @property
    def offsets(self) -> frozenset[int]:
        """A's count less B's."""
        return frozenset(a - b for a, b in self.pairs)

    @property
    def differ(self) -> bool:
        return self.is_known and self.offsets != {0}

    def sentences(self) -> tuple[str, ...]:
        if not self.is_known:
            return ("Whether both add the same template to a prompt is not known: they do not both count its tokens.",)
        prompts = count(len(self.pairs), "prompt")
        if self.offsets == {0}:
            return (f"Both count the same tokens for all {prompts}: no sign of another template or tokenizer.",)
        if len(self.offsets) > 1:
            span = f"{min(self.offsets):+d} to {max(self.offsets):+d}"
            what = "another tokenizer, or a system prompt that varies"
            return (f"A counts {span} tokens more than B for the same text, over {prompts}: {what}.",)
        (offset,) = self.offsets
        more = "A" if offset > 0 else "B"
        what = "a template, a system prompt" if self.api is EndpointApi.CHAT else "a token such as BOS, a hidden prompt"
        return (
            f"{more} counts {count(abs(offset), 'token')} more for each of {prompts}: {what}, or another way to count.",
        )


def count_tokens(asked: Mapping[tuple[str, str], Exchange], api: EndpointApi) -> TokenCounts:
    """From all exchanges in which both endpoints were sent the same; refusals and other purposes aside."""
    pairs = {}
    for (side, key), exchange in asked.items():
        other = asked.get(("b", key))
        if side == "a" and other and f":{api.value}:" in key:
            a, b = (read_usage(each.payload or {}).prompt_tokens for each in (exchange, other))
            if a is not None and b is not None and "echo" not in key and "logprobs" not in key:
                pairs[key] = (a, b)
    return TokenCounts(tuple(pairs[key] for key in sorted(pairs)), api)
