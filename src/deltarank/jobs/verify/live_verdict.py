"""What a server answers as, in words: base + adapter, the base, neither; or that it cannot be told."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from deltarank.openai_api import EndpointRef
from deltarank.results import LiveCheck, LiveVerdict, count, figure, percent
from deltarank.system import Default

TOLERANCE = Default.ENDPOINT_TOLERANCE
"""Nats per token up to which a server counts as near: other kernels and rounding make smaller distances."""

LEAST_SEEN = 0.5
"""Of the probability, the least that lists must show on average."""

FEWEST_PROMPTS, FEWEST_GREEDY = 2, 3

_HOW_TO_APPLY = (
    "In vLLM, a request names the adapter (by its name in --lora-modules), not the base; llama.cpp's server is started "
    "with --lora. The server's log may say which tensors it skipped."
)
_UNTOLD = (
    "Other weights, another adapter or another strength of it, quantisation, and text that the server puts before the "
    "prompt all look like this. Which of them it is cannot be told from here."
)


@dataclass(frozen=True)
class ListedTokens:
    """One prompt: the divergences from the server's list, and the share of the probability on it."""

    to_base: float
    to_adapter: float
    apart: float
    seen: float


@dataclass(frozen=True)
class GreedyTokens:
    """Prompts by whose greedy token the server gave; and how many prompts these were chosen from."""

    base: int
    adapter: int
    neither: int
    candidates: int

    @property
    def prompts(self) -> int:
        return self.base + self.adapter + self.neither


@dataclass(frozen=True)
class PromptCounts:
    """Tokens of one prompt by the base's tokenizer and by the server (None: it does not count).

    shift            1 or -1 if a BOS token, which the server has more or less, explains the difference
    """

    ours: int
    theirs: int | None
    shift: int = 0

    def sentences(self) -> Iterator[str]:
        if self.theirs is not None and self.theirs != self.ours + self.shift:
            yield (
                f"The server counts {count(self.theirs, 'token')} in a prompt that the base's tokenizer splits into "
                f"{self.ours}: it adds text, or has another tokenizer."
            )


def judge_lists(ref: EndpointRef, found: Sequence[ListedTokens], counts: PromptCounts) -> LiveCheck:
    """By the mean divergences from the server to each of both."""
    if len(found) < FEWEST_PROMPTS:
        return _check(
            ref, LiveVerdict.UNDECIDED, ["It cannot be decided: the server listed log-probabilities too seldom."]
        )
    base, adapter, apart, seen = (
        math.fsum(getattr(each, name) for each in found) / len(found)
        for name in ("to_base", "to_adapter", "apart", "seen")
    )
    distances = (base, adapter, apart)
    prompts = count(len(found), "prompt")
    if reason := _undecidable(distances, seen, prompts):
        return _check(ref, LiveVerdict.UNDECIDED, [reason, *counts.sentences()], len(found), distances)
    verdict = _nearest(base, adapter)
    measured = (
        f"Its first tokens after {prompts} are {figure(adapter)} nats per token from base + adapter and {figure(base)} "
        f"from the base. Base and base + adapter are {figure(apart)} apart there."
    )
    sentences = [_HEADLINES[verdict], measured, *_advice(verdict, base, adapter), *counts.sentences()]
    return _check(ref, verdict, sentences, len(found), distances)


def _undecidable(distances: tuple[float, float, float], seen: float, prompts: str) -> str | None:
    base, adapter, apart = distances
    if apart <= TOLERANCE:
        return (
            f"It cannot be decided: on the {prompts} on which base and base + adapter differ most, they are "
            f"{figure(apart)} nats per token apart, and kernels and rounding can make {TOLERANCE:g}."
        )
    if seen < LEAST_SEEN and min(base, adapter) <= TOLERANCE:
        return f"It cannot be decided: the server lists only {percent(seen)} of the probability."
    if max(base, adapter) <= TOLERANCE:
        return (
            f"It cannot be decided: the server is within {TOLERANCE:g} nats per token of both base and base + adapter "
            f"({figure(base)} and {figure(adapter)})."
        )
    return None


def _nearest(base: float, adapter: float) -> LiveVerdict:
    if min(base, adapter) > TOLERANCE:
        return LiveVerdict.NEITHER
    return LiveVerdict.ADAPTER if adapter < base else LiveVerdict.BASE


_HEADLINES = {
    LiveVerdict.ADAPTER: "The server applies the adapter: it answers as base + adapter.",
    LiveVerdict.BASE: "The server does not apply the adapter: it answers as the base alone.",
    LiveVerdict.NEITHER: "The server answers neither as base + adapter nor as the base alone.",
}


def _advice(verdict: LiveVerdict, base: float, adapter: float) -> Iterator[str]:
    if verdict is LiveVerdict.BASE:
        yield _HOW_TO_APPLY
    if verdict is LiveVerdict.NEITHER:
        nearer = "base + adapter" if adapter < base else "the base alone"
        yield f"It is nearer to {nearer}, but more than {TOLERANCE:g} nats per token from both. {_UNTOLD}"


def judge_greedy(ref: EndpointRef, found: GreedyTokens, counts: PromptCounts) -> LiveCheck:
    """By the greedy first tokens, where the server lists no log-probabilities."""
    if found.prompts < FEWEST_GREEDY:
        reason = (
            "It cannot be decided: the server lists no log-probabilities, and the greedy tokens of base and base + "
            f"adapter differ clearly on only {found.prompts} of {count(found.candidates, 'prompt')}."
        )
        return _check(ref, LiveVerdict.UNDECIDED, [reason, *counts.sentences()], found.prompts)
    measured = (
        f"The server lists no log-probabilities. On {count(found.prompts, 'prompt')} on which the greedy tokens of "
        f"both differ, it gave that of base + adapter {found.adapter} times, that of the base {found.base} times, and "
        f"another {found.neither} times."
    )
    verdict = _by_greedy(found)
    sentences = [_HEADLINES.get(verdict, "It cannot be decided: the greedy tokens do not agree."), measured]
    extra = {
        LiveVerdict.ADAPTER: ["Other weights with the same greedy tokens cannot be excluded."],
        LiveVerdict.BASE: ["Other weights with the same greedy tokens cannot be excluded.", _HOW_TO_APPLY],
        LiveVerdict.NEITHER: [_UNTOLD],
    }
    return _check(ref, verdict, [*sentences, *extra.get(verdict, []), *counts.sentences()], found.prompts)


def _by_greedy(found: GreedyTokens) -> LiveVerdict:
    """All of one, or mostly none of both."""
    if found.adapter == found.prompts:
        return LiveVerdict.ADAPTER
    if found.base == found.prompts:
        return LiveVerdict.BASE
    return LiveVerdict.NEITHER if 2 * found.neither > found.prompts else LiveVerdict.UNDECIDED


def _check(
    ref: EndpointRef,
    verdict: LiveVerdict,
    sentences: Sequence[str],
    prompts: int = 0,
    distances: tuple[float | None, float | None, float | None] = (None, None, None),
) -> LiveCheck:
    return LiveCheck(ref.model, ref.url, verdict, *distances, prompts, tuple(sentences))
