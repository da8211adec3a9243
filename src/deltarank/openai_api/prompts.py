"""Fresh prompts: no cache holds them, and no host can have prepared for them.

A passage of the built-in texts is cut in the middle of a sentence, after a line of random letters and digits, which
keeps caches out. The seed is a random secret of the run, unless one is given.
"""

from __future__ import annotations

import random
from functools import cache

from deltarank.divergence import built_in_passages, read_prompts
from deltarank.results import EndpointApi

_LETTERS = "bcdfghjkmnpqrstvwxz"
_SHORTEST, _LONGEST = 12, 60
_ENDS = tuple('.!?:;"')


def fresh_prompt(seed: int, purpose: str, number: int, api: EndpointApi) -> str:
    """The prompt of this number; the same for the same arguments."""
    rng = random.Random(f"{seed}:{purpose}:{number}")
    words = rng.choice(_passages()).split(" ")[:-1]
    start = rng.randrange(max(1, len(words) - _SHORTEST))
    cut = _in_the_middle(words[start : start + rng.randint(_SHORTEST, _LONGEST)])
    mark = "".join(rng.choices(_LETTERS, k=4)) + str(rng.randrange(1000, 10_000))
    if api is EndpointApi.COMPLETIONS:
        return f"Note {mark}.\n\n{cut}"
    if rng.random() < 0.5:
        return f"[{mark}] {rng.choice(_questions())}"
    return f"[{mark}] Continue this text, without any introduction:\n\n{cut}"


def _in_the_middle(words: list[str]) -> str:
    """Up to where a sentence goes on: after its end, a model may end the text, and answer nothing."""
    while len(words) > 1 and words[-1].endswith(_ENDS):
        words = words[:-1]
    return " ".join(words)


@cache
def _passages() -> tuple[str, ...]:
    return tuple(" ".join(passage.split()) for passage in built_in_passages())


@cache
def _questions() -> tuple[str, ...]:
    return tuple(prompt.text for prompt in read_prompts(None))
