"""Asks each endpoint for sampled text until what it serves is decided, or the caps end it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from deltarank.jobs.endpoints.answer_rounds import ANSWER_TOKENS, MOST_TOKENS, ROUNDS
from deltarank.jobs.endpoints.asking import Asker
from deltarank.jobs.endpoints.identification_evidence import CandidateName, EndpointEvidence
from deltarank.jobs.endpoints.identification_verdict import identification_sentences
from deltarank.jobs.endpoints.identified import Identified, OnRound
from deltarank.jobs.endpoints.known_models import KnownModels
from deltarank.jobs.endpoints.options import EndpointsOptions
from deltarank.jobs.endpoints.prompt_tokens import compare_prompt_tokens
from deltarank.jobs.endpoints.sampled_answer import AnswerReader, SampledAnswer
from deltarank.jobs.endpoints.spending import BudgetSpentError
from deltarank.openai_api import EndpointRef, Exchange, Request, fresh_prompt, listing_logprobs, make_request
from deltarank.results import Capabilities, EndpointApi, Identification, escape, figure

PURPOSE = "identify"
_NOT_TRUNCATED = {"top_k": -1, "min_p": 0.0}
"""Switches off what servers cut off by default (llama.cpp: top-k 40, min-p 0.05). Some hosts refuse it."""


@dataclass
class Side:
    """An endpoint that is identified."""

    reader: AnswerReader
    evidence: EndpointEvidence
    parameters: Mapping[str, object]
    answered: int = 0
    stopped: str | None = None
    is_closed: bool = False
    found: Identification | None = None
    notes: tuple[str, ...] = ()


@dataclass
class Identifier:
    """The job, for one or two endpoints."""

    known: KnownModels
    asker: Asker
    refs: Mapping[str, EndpointRef]
    options: EndpointsOptions
    capabilities: Mapping[str, Capabilities]
    on_plan: Callable[[Sequence[str]], None]
    on_round: OnRound
    problems: dict[str, str] = field(default_factory=dict)
    differs: set[str] = field(default_factory=set)

    def run(self) -> Identified:
        """Raises JobError (slug "endpoint-tokenizer-differs"): other tokens than those of the weights."""
        self.on_plan(self.known.plan_lines(self.options.alpha, self.options.tolerance))
        sides = {side: each for side in self.refs if (each := self._open(side)) is not None}
        for until in ROUNDS:
            opened = {side: each for side, each in sides.items() if not each.is_closed}
            if opened:
                self._round(opened, until)
        found = {side: each.found for side, each in sides.items() if each.found is not None}
        stopped = {side: each.stopped for side, each in sides.items() if each.found is None and each.stopped}
        return Identified(found, self.problems, frozenset(self.differs), stopped)

    def _open(self, side: str) -> Side | None:
        reader = AnswerReader(self.known.tokens, self.known.ends)
        counts = compare_prompt_tokens(self.asker.asked, side, self._api, reader)
        if counts.problem is not None:
            self.problems[side] = counts.problem
            self.differs.add(side)
            return None
        names = [CandidateName(name, self.known.kind(name), self.known.rank(name)) for name in self.known.names]
        evidence = EndpointEvidence(names, self.known.klds_on_passages, self.options.alpha, self.options.tolerance)
        reader = replace(reader, shift=counts.shift)
        return Side(reader, evidence, self._parameters(side), notes=counts.notes)

    @property
    def _api(self) -> EndpointApi:
        return next(iter(self.capabilities.values())).api

    def _name(self, side: str) -> str:
        """A and B, or its name if it is alone."""
        ref = self.refs[side]
        return side.upper() if len(self.refs) > 1 else f"{escape(ref.model)} at {escape(ref.host)}"

    def _parameters(self, side: str) -> Mapping[str, object]:
        """Lists, and no hidden truncation, where the endpoint allows it."""
        lists = listing_logprobs(self._api, self.capabilities[side].top_logprobs)
        try:
            tried = self.asker.ask(self._request(side, "samplers", 0, {**lists, **_NOT_TRUNCATED}, is_optional=True))
        except BudgetSpentError:
            return lists
        return lists if tried.is_refused else {**lists, **_NOT_TRUNCATED}

    def _request(
        self, side: str, name: str, number: int, parameters: Mapping[str, object], *, is_optional: bool = False
    ) -> Request:
        api, longest = self._api, 1 if is_optional else self._answer_tokens
        prompt = self._fitting(fresh_prompt(self.options.seed, f"{PURPOSE}-{side}", number, api))
        key, model = f"{PURPOSE}:{api.value}:{name}", self.refs[side].model
        return make_request(side, key, model, api, prompt, max_tokens=longest, is_optional=is_optional, **parameters)

    @property
    def _answer_tokens(self) -> int:
        return min(ANSWER_TOKENS, max(1, self.known.context // 4))

    def _fitting(self, prompt: str) -> str:
        """As much of its beginning as fits into the models' context, with an answer and a template."""
        most = self.known.context - 2 * self._answer_tokens
        while len(self.known.tokens.prompt_ids(prompt)) > most and " " in prompt:
            prompt = prompt.rsplit(" ", 1)[0]
        return prompt

    def _round(self, sides: Mapping[str, Side], until: int) -> None:
        """Asks, scores all new answers under each model, and looks at the evidence."""
        new = {side: self._ask(side, each, until) for side, each in sides.items()}
        read = {side: self._read(sides[side], exchanges) for side, exchanges in new.items()}
        answers = [answer for each in read.values() for answer in each]
        if answers:
            is_first = not any(each.evidence.scores for each in sides.values())
            passing = self.known.score(answers, keep=is_first)
            apart = passing.klds() if is_first else None
            first = 0
            for side, part in read.items():
                evidence, last = sides[side].evidence, first + len(part)
                evidence.add([scores[first:last] for scores in passing.scores])
                evidence.apart = evidence.apart if apart is None else apart
                first = last
        for side, each in sides.items():
            self._look(side, each, until)

    def _ask(self, side: str, each: Side, until: int) -> list[Exchange]:
        requests = [self._request(side, str(number), number, each.parameters) for number in range(each.answered, until)]
        each.answered = until
        try:
            return self.asker.ask_all(requests)
        except BudgetSpentError as spent:
            each.stopped = str(spent)
            known = [self.asker.asked.get((request.side, request.key)) for request in requests]
            return [exchange for exchange in known if exchange is not None]

    def _read(self, side: Side, exchanges: Sequence[Exchange]) -> list[SampledAnswer]:
        answers = [side.reader.read(exchange) for exchange in exchanges]
        found = [each for each in answers if each is not None and self.known.can_score(each)]
        side.evidence.unread += len(exchanges) - len(found)
        return found

    def _look(self, side: str, each: Side, until: int) -> None:
        if not each.evidence.answers:
            each.is_closed = each.stopped is not None or until >= ROUNDS[1]
            if each.is_closed and each.stopped is None:
                self.problems[side] = self._no_answers(each)
            return
        weighed = each.evidence.weigh()
        if not weighed.is_decided and each.stopped is None:
            at_end = f"{until:,} answers were asked for" if until == ROUNDS[-1] else None
            each.stopped = self._hopeless(weighed.tokens_to_tell()) or weighed.stays_open or at_end
        each.is_closed = weighed.is_decided or each.stopped is not None
        found = weighed.to_results(None if weighed.is_decided else each.stopped)
        each.found = replace(found, sentences=tuple(identification_sentences(found, self._name(side), each.notes)))
        self.on_round(side, each.found)

    def _hopeless(self, needed: float) -> str | None:
        """Why to ask no more where what is left is too alike."""
        if needed <= MOST_TOKENS:
            return None
        amount = (
            f"that takes about {figure(math.ceil(needed))} tokens"
            if math.isfinite(needed)
            else "no number of tokens would do"
        )
        return f"what is left is too alike to be told apart: {amount}"

    def _no_answers(self, each: Side) -> str:
        return (
            f"none of {each.evidence.unread} sampled answers can be scored: they are empty, have reasoning before the "
            "answer, or tokens that cannot be known. --completions may help"
        )
