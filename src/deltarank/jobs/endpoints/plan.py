"""What a run would ask, use and find, before anything is sent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from statistics import mean

import numpy as np

from deltarank.divergence import PAIRING_CHANCE
from deltarank.jobs.endpoints.answer_rounds import ANSWER_TOKENS, MOST_TOKENS, ROUNDS
from deltarank.jobs.endpoints.evidence import Design, PromptScore
from deltarank.jobs.endpoints.options import Caps, EndpointsOptions
from deltarank.jobs.endpoints.pair_test import PairTest
from deltarank.jobs.endpoints.pair_tests import LADDER, NAMES
from deltarank.openai_api import EndpointRef, fresh_prompt
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
_PROBE_ANSWER_TOKENS = 7 * 16 + 9
_PROMPTS = 64
_BYTES_OF_A_TOKEN = 3
"""Of a fresh prompt, where the tokenizer is not known. With SmolLM2's, 3.3 on average."""

_SHOWN_DISTANCES = (0.01, 0.03)
_MOST = 400

_UNKNOWN_COST = "cost unknown without --price-in and --price-out"
_UNIT = ", in the unit of your prices"

_ALL = Capabilities(EndpointApi.COMPLETIONS, top_logprobs=20, prompt_logprobs=PromptLogprobs.ECHO, greedy_repeats=True)


@dataclass(frozen=True)
class EndpointsPlan(ShownAsLines):
    """The requests of each test: what a difference and what equality take, where every prompt says the same.

    candidates      lines about the models that may be served: how many tokens tell them apart
    known_tokens    of a fresh prompt by the weights' tokenizer, on average; None: there are no weights
    """

    a: EndpointRef
    b: EndpointRef | None
    options: EndpointsOptions
    caps: Caps
    candidates: tuple[str, ...] = ()
    known_tokens: float | None = None

    def lines(self) -> list[str]:
        return [f"A: {self.a.name}", *self._tests(), *self._identification(), "", self._size_line(), self._caps_line()]

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
            yield "A row with more requests, tokens or cost than the caps allow ends undecided there."
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
        prompts = requests * self.prompt_tokens
        cost = self.caps.cost(prompts, answers)
        capped = ". The caps end a run before" if self._exceeds(requests, prompts + answers, cost) else ""
        return (
            f": with the probe, {requests:,} requests, about {prompts + answers:,} tokens, "
            f"{_UNKNOWN_COST if cost is None else f'a cost of {figure(cost)}{_UNIT}'}{capped}"
        )

    def _exceeds(self, requests: int, tokens: int, cost: float | None) -> bool:
        caps = self.caps
        is_costly = cost is not None and caps.max_cost is not None and cost > caps.max_cost
        return requests > caps.max_requests or tokens > caps.max_tokens or is_costly

    @cached_property
    def prompt_tokens(self) -> int:
        """Of a fresh prompt, about."""
        return round(self._prompt_bytes / _BYTES_OF_A_TOKEN if self.known_tokens is None else self.known_tokens)

    @cached_property
    def _prompt_bytes(self) -> float:
        return mean(len(each.encode()) for each in plan_prompts())

    def _size_line(self) -> str:
        if self.known_tokens is not None:
            return (
                f"A fresh prompt has about {self.prompt_tokens:,} tokens by the finetune's tokenizer, without a chat "
                "template."
            )
        return (
            f"Tokens are estimates: a fresh prompt has about {self._prompt_bytes:,.0f} bytes, taken as "
            f"{self.prompt_tokens:,} tokens. A tokenizer of bytes makes {_BYTES_OF_A_TOKEN} times as many tokens of "
            "prompts, and chat templates add some."
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
            tokens = self._probe_tokens + 2 * test.draws * prompts * (self.prompt_tokens + test.max_tokens)
            answers = 2 * (_PROBE_ANSWER_TOKENS + test.draws * prompts * test.max_tokens)
            cost = self.caps.cost(tokens - answers, answers)
            yield (
                NAMES[kind.name],
                f"{requests:,}" if prompts < _MOST else f"over {requests:,}",
                f"{tokens:,}",
                "unknown" if cost is None else figure(cost),
                words,
            )

    @property
    def _probe_tokens(self) -> int:
        return 2 * (PROBE_REQUESTS * self.prompt_tokens + _PROBE_ANSWER_TOKENS)

    def _probe_line(self) -> str:
        tokens = self._probe_tokens
        return (
            f"The probe: {2 * PROBE_REQUESTS} requests, about {tokens:,} tokens{self._cost(tokens)}. It finds which "
            "test the endpoints allow; the first possible one is run:"
        )

    def _cost(self, tokens: int) -> str:
        cost = self.caps.cost(tokens - 2 * _PROBE_ANSWER_TOKENS, 2 * _PROBE_ANSWER_TOKENS)
        return "" if cost is None else f", {figure(cost)}"


def plan_prompts() -> list[str]:
    """Such as a run would send."""
    return [fresh_prompt(0, "plan", number, EndpointApi.COMPLETIONS) for number in range(_PROMPTS)]


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
