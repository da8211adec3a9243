"""What a test can show, before anybody votes: how good a judge can be at best, and how many votes are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from statistics import fmean

from deltarank.divergence import abx_bound, blind_bound, votes_needed
from deltarank.results import BestPossible, BlindKey, PairKind, Question

HOPELESS = 0.55
"""If nobody can be right more often than this, a test shows nothing with a number of votes that people give."""

NEVER_CERTAIN = 0.9999
"""Bounds that rounding takes to 1 read "over 99.9 %"."""

_LONGEST = 1 << 20
_BISECTIONS = 12


def best_possible(key: BlindKey) -> BestPossible | None:
    """The bounds on the pairs of reference and candidate, averaged over them; None if the divergence is unknown."""
    lengths = {question: list(_tokens(key, question)) for question in Question}
    every = [tokens for each in lengths.values() for tokens in each]
    kld = key.kld
    if kld is None or not every:
        return None
    abx = [abx_accuracy(kld, tokens) for tokens in lengths[Question.ABX]]
    preference = [preference_share(kld, tokens) for tokens in lengths[Question.PREFERENCE]]
    return BestPossible(
        fmean(every), *(min(fmean(each), NEVER_CERTAIN) if each else None for each in (abx, preference))
    )


def _tokens(key: BlindKey, question: Question) -> Iterable[int]:
    for pair in key.pairs:
        if pair.question is question and pair.kind is PairKind.TEST and pair.tokens is not None:
            yield max(round(pair.tokens), 1)


def abx_accuracy(kld: float, tokens: int) -> float:
    """How often the best judge is right at "X is A or B" with texts of so many tokens, at most."""
    return abx_bound(blind_bound(kld, tokens))


def preference_share(kld: float, tokens: int) -> float:
    """How often a judge can favour one model with texts of so many tokens, at most."""
    return blind_bound(kld, tokens).two_replies


def tokens_for(kld: float, bound: Callable[[float, int], float] = abx_accuracy) -> int | None:
    """The length of texts at which a test is not hopeless; None if no length is enough."""
    if kld <= 0 or bound(kld, _LONGEST) < HOPELESS:
        return None
    low, high = 0, _LONGEST
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if bound(kld, middle) >= HOPELESS else (middle, high)
    return high


def found_share(votes: int) -> float | None:
    """How often one person has to be right to be found with so many votes, with a probability of 80 %."""
    if votes_needed(1 - 1e-9, most=votes) is None:
        return None
    low, high = 0.5, 1 - 1e-9
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if votes_needed(middle, most=votes) is None else (low, middle)
    return high
