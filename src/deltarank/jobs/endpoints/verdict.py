"""The verdict on two endpoints, in words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from deltarank.jobs.endpoints.options import EndpointsOptions
from deltarank.jobs.endpoints.pair_tests import NEARLY_CERTAIN
from deltarank.jobs.endpoints.token_counts import TokenCounts
from deltarank.results import (
    Endpoint,
    EndpointApi,
    EndpointTest,
    EndpointTestName,
    EndpointVerdict,
    EndpointVerdictKind,
    count,
    escape,
    figure,
    percent,
)

_LOGPROB_TESTS = (EndpointTestName.PROMPT_LOGPROBS, EndpointTestName.FIRST_TOKEN_LOGPROBS)

MOST_UNSEEN = 0.5
"""Of the probability, on tokens that the lists do not share: beyond, equal lists say little."""

_HOW = {
    EndpointTestName.PROMPT_LOGPROBS: "Compared: the log-probabilities of the prompt's own tokens",
    EndpointTestName.FIRST_TOKEN_LOGPROBS: "Compared: the log-probabilities of the first token of the answer",
    EndpointTestName.GREEDY_FIRST_TOKEN: "Compared: the first token at temperature 0",
    EndpointTestName.SAMPLES: "Compared: short answers sampled at temperature 1",
}


@dataclass(frozen=True)
class Findings:
    """What the verdict follows from.

    stopped  why the test ended undecided, as a clause; None: it was decided, or there was none
    reasons  why cheaper tests are not possible, in sentences
    """

    a: Endpoint
    b: Endpoint
    options: EndpointsOptions
    counts: TokenCounts | None
    test: EndpointTest | None
    stopped: str | None
    reasons: tuple[str, ...]


def judge_endpoints(found: Findings) -> EndpointVerdict:
    """A template that differs is said first: it changes answers more than most finetunes do."""
    kind = _kind(found)
    return EndpointVerdict(kind, (_headline(kind, found), *_details(kind, found)))


def _kind(found: Findings) -> EndpointVerdictKind:
    if found.test and _shows_same(found.test, found.options.alpha):
        return EndpointVerdictKind.SAME
    decided = found.test.decided if found.test else None
    if decided is EndpointVerdictKind.SAME:
        decided = EndpointVerdictKind.UNDECIDED
    if found.counts and found.counts.differ:
        return EndpointVerdictKind.TEMPLATE_DIFFERS
    if found.test is None and found.a.capabilities and (found.stopped is None or found.stopped.startswith("none of")):
        return EndpointVerdictKind.UNUSABLE
    return decided or EndpointVerdictKind.UNDECIDED


def _shows_same(test: EndpointTest, alpha: float) -> bool:
    """Greedy tokens, samples, short lists and tokens that are certain anyway bound too little of a difference.

    Lists from which the tokens of the answers are not drawn may be those of another model.
    """
    is_seen = test.unseen is not None and test.unseen <= MOST_UNSEEN
    is_open = test.certainty is not None and test.certainty <= NEARLY_CERTAIN
    is_listed = test.decided is EndpointVerdictKind.SAME and test.name in _LOGPROB_TESTS
    return is_listed and is_seen and is_open and not any(_is_reached(each, alpha) for each in _surprises(test))


def _surprises(test: EndpointTest) -> list[float]:
    return [each.e_value_surprising for each in (test.text_a, test.text_b) if each]


def _is_reached(e_value: float, alpha: float) -> bool:
    return e_value >= 1 / alpha


def _headline(kind: EndpointVerdictKind, found: Findings) -> str:
    a, b = _names(found)
    test = found.test
    if kind is EndpointVerdictKind.TEMPLATE_DIFFERS:
        return f"{a} and {b} do not give their models the same prompt: whether the models differ cannot be told."
    if kind is EndpointVerdictKind.UNUSABLE:
        return f"{a} and {b} cannot be compared: no test is possible with both."
    if test is not None and test.decided is EndpointVerdictKind.SAME:
        if kind is EndpointVerdictKind.SAME:
            return f"{a} and {b} predict alike: {_same(test)}."
        return f"No difference found between {a} and {b}: {_same(test)}. This does not show that they are the same."
    if kind is EndpointVerdictKind.UNDECIDED or test is None:
        return f"Not decided whether {a} and {b} serve the same model: {found.stopped or 'there was no test'}."
    return f"{a} and {b} do not answer alike: {_apart(test)}."


def _same(test: EndpointTest) -> str:
    if test.name in _LOGPROB_TESTS:
        return f"less than {figure(test.tolerance)} nats per token apart in what could be seen"
    if test.name is EndpointTestName.GREEDY_FIRST_TOKEN:
        return f"fewer than {percent(test.tolerance)} of their greedy first tokens differ"
    return f"their sampled texts have a squared MMD under {figure(test.tolerance)}"


def _apart(test: EndpointTest) -> str:
    if test.name in _LOGPROB_TESTS:
        return f"about {figure(test.statistic)} nats per token apart"
    if test.name is EndpointTestName.GREEDY_FIRST_TOKEN:
        return f"{percent(test.statistic)} of their greedy first tokens differ"
    return f"their sampled texts differ (squared MMD {figure(test.statistic)})"


def _names(found: Findings) -> tuple[str, str]:
    """Short names that tell them apart."""
    a, b = found.a, found.b
    if a.name == b.name:
        return f"{escape(a.name)} (A)", f"{escape(b.name)} (B)"
    if a.model == b.model:
        return f"{escape(a.model)} at {_host(a)} (A)", f"at {_host(b)} (B)"
    return f"{escape(a.model)} at {_host(a)} (A)", f"{escape(b.model)} at {_host(b)} (B)"


def _host(endpoint: Endpoint) -> str:
    return escape(endpoint.url.split("://", 1)[-1].removesuffix("/v1"))


def _details(kind: EndpointVerdictKind, found: Findings) -> Iterator[str]:
    yield from found.counts.sentences() if found.counts else ()
    test = found.test
    if test is not None:
        yield (
            f"{_HOW[test.name]}, of {count(test.n, 'fresh prompt')}, each sent to both several times in random order."
        )
        yield _evidence(test, found.options.alpha)
        yield _controls(test)
        yield from _limits(kind, test)
        yield from _texts_and_lists(kind, test, found.options.alpha)
    yield from found.reasons
    if kind is EndpointVerdictKind.UNUSABLE and found.stopped:
        yield f"The test ended: {found.stopped}."
    if kind is EndpointVerdictKind.UNUSABLE and found.a.capabilities:
        is_chat = found.a.capabilities.api is EndpointApi.CHAT
        yield f"{'--completions' if is_chat else '--chat'} asks both at the other API, which may help."
    for label, endpoint in (("A", found.a), ("B", found.b)):
        yield from _warnings(label, endpoint)


def _evidence(test: EndpointTest, alpha: float) -> str:
    low, high = (_amount(test, end) for end in (test.interval.low, test.interval.high))
    return (
        f"Distance between A and B: {_amount(test, test.statistic)} {test.unit} (95 % interval {low} to {high}). "
        f"E-value that they differ: {figure(test.e_value)}; that they are alike: {figure(test.e_value_same)}; "
        f"{figure(1 / alpha)} decides, and is reached wrongly in at most {percent(alpha)} of runs."
    )


def _amount(test: EndpointTest, value: float | None) -> str:
    return percent(value) if test.name is EndpointTestName.GREEDY_FIRST_TOKEN else figure(value, unknown="unknown")


def _controls(test: EndpointTest) -> str:
    noise = max(test.control_aa, test.control_bb)
    sentence = (
        f"Two answers of one endpoint, in the same minutes: {_amount(test, test.control_aa)} apart for A, "
        f"{_amount(test, test.control_bb)} for B."
    )
    if test.name is not EndpointTestName.SAMPLES and noise > test.tolerance and noise > test.statistic / 2:
        sentence += " An endpoint that differs so much from itself may serve several variants."
    return sentence


def _limits(kind: EndpointVerdictKind, test: EndpointTest) -> Iterator[str]:
    if test.unseen is not None:
        yield (
            "Only listed tokens are seen, so the distance is a lower bound: "
            f"{percent(test.unseen)} of the probability is on others."
        )
    if test.certainty is not None and test.certainty > NEARLY_CERTAIN:
        yield (
            f"The compared tokens are nearly certain (probability {percent(test.certainty)} on average), so that equal "
            "lists say little of the models."
        )
    if test.name is EndpointTestName.SAMPLES and kind is EndpointVerdictKind.DIFFERENT:
        yield "Sampled texts also differ where a host changes top-p, temperature or another setting in secret."


def _texts_and_lists(kind: EndpointVerdictKind, test: EndpointTest, alpha: float) -> Iterator[str]:
    for label, text in (("A", test.text_a), ("B", test.text_b)):
        if text and _is_reached(text.e_value_surprising, alpha):
            yield (
                f"The tokens of {label} are not drawn from the probabilities that it lists (e-value "
                f"{figure(text.e_value_surprising)}): they are too improbable. The lists may be those of another "
                "model, or the temperature is higher than the one asked for."
            )
        elif text and _is_reached(text.e_value_sharper, alpha):
            yield (
                f"{label} does not sample from the probabilities that it lists (e-value "
                f"{figure(text.e_value_sharper)}): its tokens are too probable, as with a lower temperature, top-p or "
                "min-p than were asked for."
            )
    if kind is EndpointVerdictKind.SAME:
        yield "Only listed probabilities are compared: a sampler that is changed in secret makes other texts of them."


def _warnings(label: str, endpoint: Endpoint) -> Iterator[str]:
    known = endpoint.capabilities
    for note in known.notes if known else ():
        yield f"{label}: {note}."
    ignored = [name for name, is_honoured in known.honoured.items() if not is_honoured] if known else []
    if ignored:
        yield f"{label} shows no effect of {', '.join(ignored)}."
    if len(endpoint.reported_models) > 1:
        models = ", ".join(map(escape, endpoint.reported_models[:4]))
        yield f"{label} names several models in its answers: {models}."
