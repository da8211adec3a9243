"""Runs one test prompt by prompt, both endpoints interleaved at random, until it is decided or may ask no more."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from deltarank.jobs.endpoints.asking import Asker
from deltarank.jobs.endpoints.evidence import PromptScore, summarise_test
from deltarank.jobs.endpoints.options import EndpointsOptions
from deltarank.jobs.endpoints.pair_test import PairTest
from deltarank.jobs.endpoints.probe import SIDES
from deltarank.jobs.endpoints.spending import BudgetSpentError
from deltarank.openai_api import (
    EndpointAnswer,
    EndpointRef,
    Exchange,
    Request,
    fresh_prompt,
    make_request,
    read_answers,
    read_usage,
)
from deltarank.results import EndpointTest

MOST_PROMPTS = 1000
_FIRST_LOOK = 6
"""Prompts after which a test is given up if none of them could be scored."""

OnPrompt = Callable[[int, float, float], None]
"""Called with the number of prompts and the logarithms of both e-values."""


@dataclass(frozen=True)
class TestLoop:
    """A test, and whom it asks."""

    test: PairTest
    refs: Mapping[str, EndpointRef]
    options: EndpointsOptions
    asker: Asker
    on_prompt: OnPrompt

    def run(self) -> tuple[EndpointTest | None, str | None]:
        """The test after as many prompts as it took, and why it ended if it is not decided, as a clause.

        Raises:
            JobError: an endpoint gives no usable answers.
        """
        scores: list[PromptScore] = []
        for number in range(MOST_PROMPTS):
            try:
                score = self._score(number)
            except BudgetSpentError as spent:
                return self._summary(scores), str(spent)
            if score is not None:
                scores.append(score)
                if self._is_decided(scores):
                    return self._summary(scores), None
            elif number + 1 >= _FIRST_LOOK and not scores:
                return None, f"none of {number + 1} prompts got answers from both that can be compared"
        return self._summary(scores), f"{MOST_PROMPTS:,} prompts were asked"

    def _is_decided(self, scores: Sequence[PromptScore]) -> bool:
        design = self.test.design
        self.on_prompt(len(scores), float(design.log_e_different(scores).max()), float(design.log_e_same(scores).max()))
        return design.decide(scores, self.options.alpha) is not None

    def _score(self, number: int) -> PromptScore | None:
        """What the answers to this prompt say; None if one of them cannot be compared, whichever it is."""
        requests = [self._request(side, number, draw) for draw in range(self.test.draws) for side in SIDES]
        random.Random(f"{self.options.seed}:order:{number}").shuffle(requests)
        exchanges = list(map(self.asker.ask, requests)) if self.test.one_at_a_time else self.asker.ask_all(requests)
        found = dict(zip(requests_by_key(requests), exchanges, strict=True))
        answers = {side: [_only_answer(found[where]) for where in sorted(found) if where[0] == side] for side in SIDES}
        a, b = ([each for each in answers[side] if each is not None] for side in SIDES)
        if len(a) + len(b) < len(requests):
            return None
        return self.test.score(a, b, sum(map(_tokens_of, found.values())))

    def _request(self, side: str, number: int, draw: int) -> Request:
        name, api = self.test.name.value, self.test.api
        return make_request(
            side,
            f"{name}:{api.value}:{number}:{draw}",
            self.refs[side].model,
            api,
            fresh_prompt(self.options.seed, name, number, api),
            max_tokens=self.test.max_tokens,
            **self.test.parameters(),
        )

    def _summary(self, scores: Sequence[PromptScore]) -> EndpointTest | None:
        if not scores:
            return None
        test = self.test
        return summarise_test(
            test.design,
            scores,
            self.options.alpha,
            permutation_p=test.permutation_p(scores),
            effect=test.effect(scores),
        )


def requests_by_key(requests: Sequence[Request]) -> list[tuple[str, str]]:
    return [(each.side, each.key) for each in requests]


def _only_answer(exchange: Exchange) -> EndpointAnswer | None:
    return next(iter(read_answers(exchange.payload or {})), None)


def _tokens_of(exchange: Exchange) -> int:
    usage = read_usage(exchange.payload or {})
    return (usage.prompt_tokens or 0) + (usage.completion_tokens or 0)
