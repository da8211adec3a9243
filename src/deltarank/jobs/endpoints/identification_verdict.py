"""What an endpoint serves, in words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from deltarank.divergence import PLAIN, SETTINGS
from deltarank.jobs.endpoints.identification_evidence import FEWEST_TOKENS
from deltarank.results import (
    Identification,
    ServedCandidate,
    ServedKind,
    count,
    escape,
    figure,
    listing,
    percent,
    power_of_ten,
)

_WORDS = {
    ServedKind.BASE: "the base",
    ServedKind.FINETUNE: "the finetune",
    ServedKind.RANK: "base + rank-{rank} delta",
    ServedKind.ADAPTER: "base + adapter {name}",
    ServedKind.YARDSTICK: "the finetune in {name}",
}


def in_words(candidate: ServedCandidate) -> str:
    return _WORDS[candidate.kind].format(name=escape(candidate.name), rank=candidate.rank)


def identification_sentences(found: Identification, letter: str, notes: Sequence[str] = ()) -> Iterator[str]:
    """The first is the headline."""
    yield _headline(found, letter)
    yield _evidence(found)
    yield from _lists(found)
    yield from _rest(found)
    yield _sampler(found)
    yield from notes
    if found.unread:
        yield f"{count(found.unread, 'answer')} of {letter} could not be scored."


def _headline(found: Identification, letter: str) -> str:
    nearest = in_words(found.named(found.nearest))
    if found.none_of_these:
        return f"{letter} answers as none of these {len(found.candidates)} models. The nearest is {nearest}."
    left = [in_words(each) for each in sorted(found.left, key=lambda each: -each.posterior)]
    if found.decided:
        return f"{letter} answers as {left[0]}: the other {len(found.candidates) - 1} candidates are excluded."
    if len(left) == 1:
        may = f"{letter} may serve {left[0]}, the only candidate that is left, but"
        if found.tokens >= FEWEST_TOKENS:
            return f"{may} it is not decided: {found.stopped}."
        few = f"{count(found.tokens, 'token')} of text are too few to exclude models that are no candidates"
        return f"{may} {few} ({found.stopped})."
    if len(left) == len(found.candidates):
        return f"Not decided what {letter} serves: no candidate is excluded ({found.stopped})."
    excluded = count(len(found.candidates) - len(left), "other candidate is", "other candidates are")
    return f"Not decided which of these {letter} serves: {listing(left)}. {excluded} excluded ({found.stopped})."


def _evidence(found: Identification) -> str:
    limit = figure(1 / found.alpha)
    return (
        f"From {count(found.tokens, 'token')} of {count(found.answers, 'answer')} sampled at temperature 1, "
        f"scored under each candidate here. A candidate is excluded when its e-value reaches {limit}; the one that is "
        f"served reaches that in at most {percent(found.alpha)} of runs."
    )


def _lists(found: Identification) -> Iterator[str]:
    near = found.named(found.nearest)
    if near.kld is None:
        return
    others = [each for each in found.candidates if each.kld is not None and each.name != near.name]
    second = min(others, key=lambda each: each.kld or 0.0, default=None)
    beside = f"; next is {in_words(second)} with {figure(second.kld)}" if second else ""
    yield (
        f"The listed log-probabilities of {count(found.listed, 'token')} are {figure(near.kld)} nats per token from "
        f"{in_words(near)}{beside} (lower bounds of the KL divergence, at each model's best temperature)."
    )


def _rest(found: Identification) -> Iterator[str]:
    if found.none_of_these or found.best is None:
        yield (
            "None of these: another finetune, another strength of the adapter, another quantisation, settings of "
            "the sampler that are not among those considered, or lists that are not those of the model: cut off by "
            "top-p or the like, or of another model than the text."
        )
        return
    best = found.named(found.best)
    if best.nearest is not None:
        needed = (
            "no number of tokens tells them apart"
            if best.tokens_needed is None
            else (f"about {figure(math.ceil(best.tokens_needed))} tokens tell them apart")
        )
        yield (
            f"Hardest to tell from {in_words(best)} is {in_words(found.named(best.nearest))}: on this text they are "
            f"{figure(best.nearest_kld)} nats per token apart, so {needed} (ln(1/alpha) / KLD). The likelihood ratio "
            f"of the two is {power_of_ten(best.nearest_log_e_value or 0.0)} so far."
        )


def _sampler(found: Identification) -> str:
    """The setting is estimated with the model, among those considered; everything else about it is assumed."""
    share = percent(found.sampler_probability)
    if found.sampler == str(SETTINGS[PLAIN]):
        fits = f"The text fits what was asked for best: {found.sampler} (probability {share})."
    else:
        fits = f"Not {SETTINGS[PLAIN]}, as was asked for, but {found.sampler} fits the text best (probability {share})."
        if found.sampler in {str(each) for each in SETTINGS if each.temperature > 1}:
            fits += " Text of a model that is no candidate looks like that, too."
    return f"{fits} Assumed is one setting for the whole text, among those considered."
