"""What a run would ask, use and find, before anything is sent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from deltarank.divergence import PAIRING_CHANCE
from deltarank.jobs.endpoints.answer_rounds import ANSWER_TOKENS, MOST_TOKENS, ROUNDS
from deltarank.jobs.endpoints.evidence import Design, PromptScore
from deltarank.jobs.endpoints.options import Caps, EndpointsOptions
from deltarank.jobs.endpoints.pair_test import PairTest
from deltarank.jobs.endpoints.pair_tests import LADDER, NAMES
from deltarank.openai_api import EndpointRef
from deltarank.results import (
    Capabilities,
    EndpointApi,
    EndpointTestName,
    PromptLogprobs,
    ShownAsLines,
    count,
    figure,
    format_table,
)

PROBE_REQUESTS = 16
_PROMPT_TOKENS = 60
"""Of a fresh prompt, about."""

_PROBE_ANSWER_TOKENS = 7 * 16 + 9
_PROBE_TOKENS = PROBE_REQUESTS * _PROMPT_TOKENS + _PROBE_ANSWER_TOKENS
_SHOWN_DISTANCES = (0.01, 0.03)
_MOST = 400

_UNKNOWN_COST = "cost unknown without --price-in and --price-out"
_UNIT = ", in the unit of your prices"

_ALL = Capabilities(EndpointApi.COMPLETIONS, top_logprobs=20, prompt_logprobs=PromptLogprobs.ECHO, greedy_repeats=True)


@dataclass(frozen=True)
class EndpointsPlan(ShownAsLines):
    """The requests of each test: what a difference and what equality take, where every prompt says the same.

    candidates   lines about the models that may be served: how many tokens tell them apart
    """

    a: EndpointRef
    b: EndpointRef | None
    options: EndpointsOptions
    caps: Caps
    candidates: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        return [f"A: {self.a.name}", *self._tests(), *self._identification(), "", self._caps_line()]

    def _tests(self) -> Iterator[str]:
        """Between two endpoints."""
        if self.b is not None:
            tests = [kind for kind in LADDER if self.options.test in (None, kind.name)]
            rows = [row for kind in tests for row in self._rows(kind)]
            yield from (f"B: {self.b.name}", self._probe_line(), "")
            yield from format_table([("test", "requests", "tokens", "cost", "decides"), *rows], align="<>>><")
            yield ""
            yield (
                "Numbers of requests are for prompts that all show the same difference, and include the probe. However "
                "large the difference is, a test takes a least number of prompts."
            )
            yield "A row with more requests than the cap of --max-requests ends undecided there."
            yield "Greedy tokens or sampled texts without a difference do not show that the endpoints are the same."
            if self.caps.cost(0, 0) is not None:
                yield "Costs are in the unit of your prices."

    def _identification(self) -> Iterator[str]:
        if self.candidates:
            yield from ("", *self.candidates)
            yield (
                "Listed log-probabilities tell candidates apart in far fewer tokens, unless they are nearer than the "
                f"tolerance, {figure(self.options.tolerance)} nats per token. Text tells none apart that need more "
                f"than {MOST_TOKENS:,} tokens."
            )
            yield (
                f"Until it is decided, each endpoint is asked for answers of up to {ANSWER_TOKENS} tokens, at most "
                f"{ROUNDS[-1]:,}{self._most_used()}."
            )

    def _most_used(self) -> str:
        """With the probe, the requests, tokens and cost of an endpoint that is never decided."""
        requests, answers = PROBE_REQUESTS + ROUNDS[-1], _PROBE_ANSWER_TOKENS + MOST_TOKENS
        prompts = requests * _PROMPT_TOKENS
        cost = self.caps.cost(prompts, answers)
        capped = ". The caps end a run before" if requests > self.caps.max_requests else ""
        return (
            f": with the probe, {requests:,} requests, about {prompts + answers:,} tokens, "
            f"{_UNKNOWN_COST if cost is None else f'a cost of {figure(cost)}{_UNIT}'}{capped}"
        )

    def _caps_line(self) -> str:
        cost = f", a cost of {figure(self.caps.max_cost)}" if self.caps.max_cost is not None else ""
        return (
            f"Caps: {count(self.caps.max_requests, 'request')}, {count(self.caps.max_tokens, 'token')}{cost}. "
            f"Nothing was sent. A verdict is wrong in at most {100 * self.options.alpha:g} % of runs."
        )

    def _rows(self, kind: type[PairTest]) -> Iterator[tuple[str, ...]]:
        test = kind(self.options, {"a": _ALL, "b": _ALL})
        for words, distance in _differences(test.design):
            prompts = prompts_needed(test.design, distance, self.options.alpha)
            requests = 2 * PROBE_REQUESTS + 2 * test.draws * prompts
            tokens = 2 * _PROBE_TOKENS + 2 * test.draws * prompts * (_PROMPT_TOKENS + test.max_tokens)
            answers = 2 * (_PROBE_ANSWER_TOKENS + test.draws * prompts * test.max_tokens)
            cost = self.caps.cost(tokens - answers, answers)
            yield (
                NAMES[kind.name],
                f"{requests:,}" if prompts < _MOST else f"over {requests:,}",
                f"{tokens:,}",
                "unknown" if cost is None else figure(cost),
                words,
            )

    def _probe_line(self) -> str:
        tokens = 2 * _PROBE_TOKENS
        return (
            f"The probe: {2 * PROBE_REQUESTS} requests, about {tokens:,} tokens{self._cost(tokens)}. It finds which "
            "test the endpoints allow; the first possible one is run:"
        )

    def _cost(self, tokens: int) -> str:
        cost = self.caps.cost(tokens - 2 * _PROBE_ANSWER_TOKENS, 2 * _PROBE_ANSWER_TOKENS)
        return "" if cost is None else f", {figure(cost)}"


def _differences(design: Design) -> Iterator[tuple[str, float]]:
    if design.name in (EndpointTestName.PROMPT_LOGPROBS, EndpointTestName.FIRST_TOKEN_LOGPROBS):
        yield from ((f"{figure(each)} nats per token apart", each) for each in _SHOWN_DISTANCES)
    elif design.name is EndpointTestName.GREEDY_FIRST_TOKEN:
        yield "every second greedy first token differs", 0.5
    yield f"no difference: under {figure(design.same_below)} {design.unit}", 0.0


def prompts_needed(design: Design, distance: float, alpha: float) -> int:
    """Prompts until the test is decided, if each shows this distance; of a share, if that share of them differs."""
    is_share = design.ceiling == 1 and design.tolerance is not None and design.same_range[1] == 1
    period = round(1 / distance) if is_share and distance else 1
    scores = [
        PromptScore(
            distance * period if i % period == 0 else 0.0,
            0,
            0,
            0,
            1.0 if distance and i % period == 0 else PAIRING_CHANCE,
        )
        for i in range(_MOST)
    ]
    limit = -np.log(alpha)
    values = design.log_e_different(scores) if distance else design.log_e_same(scores)
    reached = np.flatnonzero(values >= limit)
    return int(reached[0]) + 1 if len(reached) else _MOST
