"""What a server answers as, in words: base + adapter, the base, neither; or that it cannot be told."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

from deltarank.openai_api import EndpointRef
from deltarank.results import LiveCheck, LiveText, LiveVerdict, count, figure, percent

LEAST_SEEN = 0.5
"""Of the probability, the least that lists must show on average."""

FEWEST_PROMPTS, FEWEST_GREEDY = 2, 3

NEARLY = 10
"""A server that is nearer to one of both than to the other by this factor answers nearly as that one."""

_HOW_TO_APPLY = (
    "In vLLM, a request names the adapter (by its name in --lora-modules), not the base; llama.cpp's server is started "
    "with --lora. The server's log may say which tensors it skipped."
)
_UNTOLD = (
    "Other weights, another adapter or another strength of it, quantisation, and text that the server puts before the "
    "prompt all look like this. Which of them it is cannot be told from here."
)

PARTIAL = (0.2, 0.8)
"""Of the adapter's change, the most that a server shows as the base, and the least as base + adapter."""

_OTHER_TEXT = "Another model may write the text, or the server changes its sampler in secret."


@dataclass(frozen=True)
class Asked:
    """Who was asked, how its prompts are counted, and the nats per token within which it is near to a model.

    Other kernels and rounding make distances below the default tolerance; quantised weights make larger ones.
    """

    ref: EndpointRef
    counts: PromptCounts
    tolerance: float

    def check(
        self,
        verdict: LiveVerdict,
        sentences: Sequence[str],
        prompts: int = 0,
        distances: Distances | None = None,
    ) -> LiveCheck:
        base, adapter, apart, strength = (
            (distances.base, distances.adapter, distances.apart, distances.strength) if distances else (None,) * 4
        )
        told = (*sentences, *self.counts.sentences())
        return LiveCheck(
            self.ref.model, self.ref.url, verdict, base, adapter, apart, strength, self.tolerance, prompts, told
        )


@dataclass(frozen=True)
class ListedTokens:
    """One prompt: the divergences from the server's list, and the share of the probability on it.

    along, length    covariance and variance of log-probabilities, whose ratio is the strength of the adapter
    """

    to_base: float
    to_adapter: float
    apart: float
    seen: float
    along: float
    length: float


@dataclass(frozen=True)
class Distances:
    """Means over prompts, in nats per token; and the share of the adapter's change that the server shows."""

    base: float
    adapter: float
    apart: float
    seen: float
    strength: float | None

    @classmethod
    def of(cls, found: Sequence[ListedTokens]) -> Self:
        names = ("to_base", "to_adapter", "apart", "seen", "along", "length")
        sums = [math.fsum(getattr(each, name) for each in found) for name in names]
        base, adapter, apart, seen = (each / len(found) for each in sums[:4])
        along, length = sums[4:]
        return cls(base, adapter, apart, seen, along / length if length else None)

    @property
    def nearest(self) -> LiveVerdict:
        return LiveVerdict.ADAPTER if self.adapter < self.base else LiveVerdict.BASE

    @property
    def least(self) -> float:
        return min(self.base, self.adapter)

    @property
    def is_nearly_one(self) -> bool:
        return self.least * NEARLY <= max(self.base, self.adapter)


@dataclass(frozen=True)
class GreedyTokens:
    """Prompts by whose greedy token the server gave; and how many prompts these were chosen from.

    empty    prompts with an empty answer, which says nothing
    """

    base: int
    adapter: int
    neither: int
    empty: int
    candidates: int

    @property
    def prompts(self) -> int:
        return self.base + self.adapter + self.neither

    @property
    def why_few(self) -> str:
        if self.empty:
            return f"{self.empty} of {count(self.prompts + self.empty, 'greedy answer')} of the server are empty"
        return (
            f"the greedy tokens of base and base + adapter differ clearly on only {self.prompts} of "
            f"{count(self.candidates, 'prompt')}"
        )

    def to_results(self) -> LiveText:
        return LiveText(self.adapter, self.base, self.neither)


@dataclass(frozen=True)
class PromptCounts:
    """Tokens of one prompt by the base's tokenizer and by the server (None: it does not count).

    shift            1 or -1 if a BOS token, which the server has more or less, explains the difference
    is_shortened     whether the server refused the prompt until it was shortened
    """

    ours: int
    theirs: int | None
    shift: int = 0
    is_shortened: bool = False

    def sentences(self) -> Iterator[str]:
        if self.is_shortened:
            yield f"The server refused longer prompts: those asked have {count(self.ours, 'token')} at most."
        if self.theirs is not None and self.theirs != self.ours + self.shift:
            how = "adds text" if self.theirs > self.ours else "cuts text off"
            yield (
                f"The server counts {count(self.theirs, 'token')} in a prompt that the base's tokenizer splits into "
                f"{self.ours}: it {how}, or has another tokenizer."
            )


def judge_lists(asked: Asked, found: Sequence[ListedTokens]) -> LiveCheck:
    """By the mean divergences from the server to each of both."""
    distances, prompts = Distances.of(found), count(len(found), "prompt")
    if reason := _undecidable(distances, asked.tolerance, prompts):
        return asked.check(LiveVerdict.UNDECIDED, [reason], len(found), distances)
    verdict = distances.nearest if distances.least <= asked.tolerance else LiveVerdict.NEITHER
    measured = (
        f"Its first tokens after {prompts} are {figure(distances.adapter)} nats per token from base + adapter and "
        f"{figure(distances.base)} from the base. Base and base + adapter are {figure(distances.apart)} apart there, "
        "in the smaller direction."
    )
    sentences = [_headline(verdict, distances), measured, *_advice(verdict, distances, asked.tolerance)]
    return asked.check(verdict, sentences, len(found), distances)


def _undecidable(found: Distances, tolerance: float, prompts: str) -> str | None:
    if found.apart <= tolerance:
        return (
            f"It cannot be decided: on the {prompts} on which base and base + adapter differ most, they are "
            f"{figure(found.apart)} nats per token apart, and the tolerance is {tolerance:g}."
        )
    if found.seen < LEAST_SEEN and found.least <= tolerance:
        return f"It cannot be decided: the server lists only {percent(found.seen)} of the probability."
    if max(found.base, found.adapter) <= tolerance:
        return (
            f"It cannot be decided: the server is within {tolerance:g} nats per token of both base and base + adapter "
            f"({figure(found.base)} and {figure(found.adapter)})."
        )
    return None


_HEADLINES = {
    LiveVerdict.ADAPTER: "The server applies the adapter: it answers as base + adapter.",
    LiveVerdict.BASE: "The server does not apply the adapter: it answers as the base alone.",
    LiveVerdict.NEITHER: "The server answers neither as base + adapter nor as the base alone.",
}
_MODELS = {LiveVerdict.ADAPTER: "base + adapter", LiveVerdict.BASE: "the base alone"}


def _headline(verdict: LiveVerdict, found: Distances) -> str:
    if verdict is LiveVerdict.NEITHER and found.is_nearly_one:
        return f"The server answers nearly as {_MODELS[found.nearest]}, but not within the tolerance."
    if _is_partial(verdict, found):
        return (
            f"The server answers as {_MODELS[verdict]} within the tolerance, but shows {_share(found.strength or 0.0)} "
            "of the change that the adapter makes."
        )
    return _HEADLINES[verdict]


def _is_partial(verdict: LiveVerdict, found: Distances) -> bool:
    """Whether a wide tolerance takes a part of the adapter for all of it, or for nothing."""
    if found.strength is None:
        return False
    most_of_base, least_of_adapter = PARTIAL
    is_less, is_more = found.strength < least_of_adapter, found.strength > most_of_base
    return is_less if verdict is LiveVerdict.ADAPTER else is_more and verdict is LiveVerdict.BASE


def _advice(verdict: LiveVerdict, found: Distances, tolerance: float) -> Iterator[str]:
    if verdict is LiveVerdict.BASE:
        yield _HOW_TO_APPLY
    if _is_partial(verdict, found):
        yield "An adapter at another strength looks like this, and so does one of which the server leaves out a part."
    if verdict is not LiveVerdict.NEITHER:
        return
    if found.strength is not None:
        yield f"Of the change that the adapter makes there, it shows {_share(found.strength)}."
    if found.is_nearly_one:
        yield _explain_nearly(found, tolerance)
    else:
        yield (
            f"It is nearer to {_MODELS[found.nearest]}, but more than {tolerance:g} nats per token from both. {_UNTOLD}"
        )


def _share(strength: float) -> str:
    return f"{percent(strength)}" if strength >= 0 else "nothing"


def _explain_nearly(found: Distances, tolerance: float) -> str:
    alike = {
        LiveVerdict.ADAPTER: "A quantised base with the adapter looks like this, and so does a server that leaves out "
        "a small part of the adapter, or scales it a little differently.",
        LiveVerdict.BASE: "A quantised base without the adapter looks like this, and so does a server that applies "
        "next to nothing of it.",
    }
    return (
        f"{alike[found.nearest]} If the server's weights are quantised, --tolerance says up to how many nats per token "
        f"count as near ({tolerance:g} now)."
    )


def check_text(found: LiveCheck, given: GreedyTokens) -> LiveCheck:
    """Whether the text is that of the model whose probabilities are listed.

    Args:
        found: by the lists: ADAPTER or BASE.
    """
    listed = _MODELS[found.verdict]
    agreeing = given.adapter if found.verdict is LiveVerdict.ADAPTER else given.base
    headline, *others = found.sentences
    if not given.prompts:
        unseen = (
            f"Only its lists were compared. Whether the text is that of {listed}, too, was not seen: {given.why_few}."
        )
        return replace(found, sentences=(headline, unseen, *others))
    gave = _gave(given)
    if agreeing == given.prompts:
        return replace(found, text=given.to_results(), sentences=(headline, *others, f"Its text agrees. {gave}"))
    if 2 * agreeing > given.prompts:
        warning = f"Not all of its text agrees with its lists. {gave} {_OTHER_TEXT}"
        return replace(found, text=given.to_results(), sentences=(headline, warning, *others))
    undecided = (
        f"It cannot be decided: the server lists the probabilities of {listed}, and its text does not agree with them."
    )
    kept = [each for each in others if each != _HOW_TO_APPLY]
    return replace(
        found,
        verdict=LiveVerdict.UNDECIDED,
        text=given.to_results(),
        sentences=(undecided, f"{gave} {_OTHER_TEXT}", *kept),
    )


def _gave(given: GreedyTokens) -> str:
    return (
        f"On {count(given.prompts, 'prompt')} on which the greedy tokens of both differ, it gave that of base + "
        f"adapter {count(given.adapter, 'time')}, that of the base {count(given.base, 'time')}, and another "
        f"{count(given.neither, 'time')}."
    )


def judge_greedy(asked: Asked, why: str, found: GreedyTokens) -> LiveCheck:
    """By the greedy first tokens, where the server's log-probabilities cannot be used: `why`, in a sentence."""
    if found.prompts < FEWEST_GREEDY:
        reason = f"It cannot be decided: {found.why_few}."
        return asked.check(LiveVerdict.UNDECIDED, [reason, why], found.prompts)
    measured = f"{why} {_gave(found)}"
    verdict = _by_greedy(found)
    headline = _HEADLINES.get(verdict, "It cannot be decided: the greedy tokens do not agree.")
    extra = {
        LiveVerdict.ADAPTER: ["Other weights with the same greedy tokens cannot be excluded."],
        LiveVerdict.BASE: ["Other weights with the same greedy tokens cannot be excluded.", _HOW_TO_APPLY],
        LiveVerdict.NEITHER: [_UNTOLD],
    }
    check = asked.check(verdict, [headline, measured, *extra.get(verdict, [])], found.prompts)
    return replace(check, text=found.to_results())


def _by_greedy(found: GreedyTokens) -> LiveVerdict:
    """All of one, or mostly none of both."""
    if found.adapter == found.prompts:
        return LiveVerdict.ADAPTER
    if found.base == found.prompts:
        return LiveVerdict.BASE
    return LiveVerdict.NEITHER if 2 * found.neither > found.prompts else LiveVerdict.UNDECIDED
