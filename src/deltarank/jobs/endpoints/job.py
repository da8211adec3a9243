"""Runs `endpoints`: probe, token counts, the cheapest test until it is decided, verdict.

The same code analyses a finished run again: offline, the exchanges end where they ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from deltarank.jobs.endpoints.asking import Asker
from deltarank.jobs.endpoints.identified import Identified, OnRound, judge_one
from deltarank.jobs.endpoints.options import EndpointsOptions
from deltarank.jobs.endpoints.pair_tests import choose_test
from deltarank.jobs.endpoints.probe import Probe, probe_key
from deltarank.jobs.endpoints.spending import BudgetSpentError
from deltarank.jobs.endpoints.test_loop import OnPrompt, TestLoop
from deltarank.jobs.endpoints.token_counts import TokenCounts, count_tokens
from deltarank.jobs.endpoints.verdict import Findings, judge_endpoints
from deltarank.openai_api import EndpointRef, read_answers, read_usage
from deltarank.results import (
    AnswerPair,
    Capabilities,
    Endpoint,
    EndpointApi,
    EndpointResults,
    EndpointsFound,
    EndpointTest,
    EndpointTestName,
    EndpointVerdict,
)
from deltarank.system import tool_version

if TYPE_CHECKING:
    from deltarank.jobs.endpoints.known_models import KnownModels

SHOWN = ("greedy-1", "seed-1", "seed-2")
"""The probe's answers that are shown side by side."""

OnProbe = Callable[[Mapping[str, Capabilities], TokenCounts | None], None]
OnTest = Callable[[EndpointTestName], None]
OnCandidates = Callable[[Sequence[str]], None]
"""Called with lines: how many tokens tell the candidates apart."""


@dataclass(frozen=True)
class Watchers:
    """Who is told how far a run is."""

    on_probe: OnProbe = lambda found, counts: None
    on_test: OnTest = lambda name: None
    on_prompt: OnPrompt = lambda prompts, log_e_different, log_e_same: None
    on_candidates: OnCandidates = lambda lines: None
    on_round: OnRound = lambda side, found: None


@dataclass
class EndpointsJob:
    """One run, over an asker that may be offline. What is found is filled in on the way.

    refs     of one endpoint or two, by side
    known    the models that may be served, open; None: no weights were given
    """

    refs: Mapping[str, EndpointRef]
    options: EndpointsOptions
    asker: Asker
    created: str
    watchers: Watchers = Watchers()
    known: KnownModels | None = None
    identified: Identified = field(default_factory=Identified)
    capabilities: Mapping[str, Capabilities] = field(default_factory=dict)
    counts: TokenCounts | None = None
    test: EndpointTest | None = None
    stopped: str | None = None
    reasons: tuple[str, ...] = ()

    def run(self) -> EndpointResults:
        """Asks what is needed, and judges.

        Raises:
            JobError: an endpoint gives no usable answers. What it answered before is kept.
        """
        try:
            self._ask()
        except BudgetSpentError as spent:
            self.stopped = str(spent)
        return self._results()

    def _ask(self) -> None:
        probe = Probe(self.asker, self.refs, self.options.seed)
        api = probe.find_api(self.options.api)
        self.capabilities = probe.ask(api)
        self.counts = count_tokens(self.asker.asked, api) if len(self.refs) > 1 else None
        self.watchers.on_probe(self.capabilities, self.counts)
        if self.known is not None:
            self._identify(self.known)
        if len(self.refs) > 1:
            self._compare()

    def _identify(self, known: KnownModels) -> None:
        from deltarank.jobs.endpoints.identify import Identifier  # it imports transformers

        watchers = self.watchers
        identifier = Identifier(
            known, self.asker, self.refs, self.options, self.capabilities, watchers.on_candidates, watchers.on_round
        )
        self.identified = identifier.run()

    def _compare(self) -> None:
        pair_test, reasons = choose_test(self.options, self.capabilities)
        self.reasons = tuple(reasons)
        if pair_test is not None:
            self.watchers.on_test(pair_test.name)
            loop = TestLoop(pair_test, self.refs, self.options, self.asker, self.watchers.on_prompt)
            self.test, self.stopped = loop.run()

    def _results(self) -> EndpointResults:
        a, *others = (self._endpoint(side) for side in self.refs)
        found = EndpointsFound(
            a=a,
            b=others[0] if others else None,
            template=self.counts.sentences() if self.counts else (),
            tests=(self.test,) if self.test else (),
            verdict=self._verdict(a, *others),
            answers=tuple(self._answers(a.capabilities.api)) if a.capabilities else (),
            identification=self.identified.identifications.get("a"),
            identification_b=self.identified.identifications.get("b"),
        )
        return EndpointResults(found, self.options.to_plain(), tool_version(), self.created)

    def _verdict(self, a: Endpoint, b: Endpoint | None = None) -> EndpointVerdict:
        if b is None:
            return judge_one(a, self.identified, self.stopped)
        pair = judge_endpoints(Findings(a, b, self.options, self.counts, self.test, self.stopped, self.reasons))
        return replace(pair, sentences=(*pair.sentences, *self.identified.sentences()))

    def _endpoint(self, side: str) -> Endpoint:
        payloads = [each.payload or {} for (which, _), each in self.asker.asked.items() if which == side]
        usages = [read_usage(each) for each in payloads]
        ref = self.refs[side]
        return Endpoint(
            model=ref.model,
            url=ref.url,
            capabilities=self.capabilities.get(side),
            requests=len(payloads),
            prompt_tokens=sum(each.prompt_tokens or 0 for each in usages),
            completion_tokens=sum(each.completion_tokens or 0 for each in usages),
            reported_models=tuple(sorted({each["model"] for each in payloads if isinstance(each.get("model"), str)})),
        )

    def _answers(self, api: EndpointApi) -> Iterator[AnswerPair]:
        for key in SHOWN:
            exchanges = [self.asker.asked.get((side, probe_key(api, key))) for side in self.refs]
            texts = [
                next((each.whole_text for each in read_answers(found.payload or {})), "") if found else ""
                for found in exchanges
            ]
            if exchanges[0] and all(texts):
                yield AnswerPair(_prompt_of(exchanges[0].request), *texts)


def _prompt_of(request: Mapping[str, object]) -> str:
    messages = request.get("messages")
    if isinstance(messages, list) and messages and isinstance(messages[-1], dict):
        return str(messages[-1].get("content", ""))
    return str(request.get("prompt", ""))
