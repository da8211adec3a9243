"""The tests that endpoints allow: what each asks of them for a prompt, and how the answers are scored."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deltarank.divergence import kld_lower_bound, log_bets, pairing_score, unseen_mass
from deltarank.jobs.endpoints.evidence import Design, PromptScore
from deltarank.jobs.endpoints.options import EndpointsOptions
from deltarank.jobs.endpoints.pair_test import Answers, PairTest
from deltarank.jobs.endpoints.sampled_texts import SampledTexts
from deltarank.openai_api import Distribution, largest_probability, listing_logprobs, with_text
from deltarank.results import Capabilities, EndpointApi, EndpointTestName, PromptLogprobs

NATS = "nats per token"
NEARLY_CERTAIN = 0.95
_MORE_TOKENS = 8
_FEWEST_POSITIONS = 4


class _LogprobTest(PairTest):
    """Compares lists of log-probabilities, position by position."""

    def _design(self) -> Design:
        tolerance = self.options.tolerance
        return Design(self.name, NATS, tolerance, (0.0, 5 * tolerance), tolerance)

    @abstractmethod
    def comparable(self, answers: Answers) -> list[Sequence[Distribution]]:
        """Of each answer, the positions at which all of them follow the same tokens."""

    def score(self, a: Answers, b: Answers, tokens: int) -> PromptScore | None:
        lists = [[with_text(each) for each in answer] for answer in self.comparable([*a, *b])]
        if len({len(each) for each in lists}) > 1 or not all(lists):
            return None
        usable = [i for i in range(len(lists[0])) if all(each[i] for each in lists)]
        if not usable:
            return None
        a1, a2, b1, b2 = ([each[i] for i in usable] for each in lists)
        return PromptScore(
            distance=(_mean_kld(a1, b1) + _mean_kld(a2, b2)) / 2,
            noise_a=_mean_kld(a1, a2),
            noise_b=_mean_kld(b1, b2),
            order=pairing_score(
                _both_ways(a1, a2) + _both_ways(b1, b2),
                _both_ways(a1, b1) + _both_ways(a2, b2),
                _both_ways(a1, b2) + _both_ways(a2, b1),
            ),
            tokens=tokens,
            unseen=float(np.mean([unseen_mass(p, q) for p, q in zip(a1, b1, strict=True)])),
            certainty=float(np.mean([largest_probability(each) for each in (*a1, *b1)])),
            bets_a=self.bets(a),
            bets_b=self.bets(b),
        )

    def bets(self, answers: Answers) -> Any:
        """On the tokens of these answers, at the odds of their lists; None: the test does not see them."""
        return None

    def effect(self, scores: Sequence[PromptScore]) -> float | None:
        return float(np.mean([each.distance for each in scores]))


class FirstTokenLogprobs(_LogprobTest):
    """The most probable first tokens of the answer.

    Where the first token is nearly certain, such as a <think> tag, it says nothing of the model. Then answers are
    longer, and positions are compared as long as all answers have the same tokens before them.
    """

    name = EndpointTestName.FIRST_TOKEN_LOGPROBS

    def __init__(self, options: EndpointsOptions, capabilities: Mapping[str, Capabilities]) -> None:
        super().__init__(options, capabilities)
        if min(each.certainty or 0.0 for each in capabilities.values()) > NEARLY_CERTAIN:
            self.max_tokens = _MORE_TOKENS

    @staticmethod
    def missing(each: Capabilities) -> str | None:
        return None if each.top_logprobs else "lists no log-probabilities"

    def parameters(self) -> dict[str, Any]:
        return listing_logprobs(self.api, self.listed)

    def comparable(self, answers: Answers) -> list[Sequence[Distribution]]:
        shared = _shared_start([each.tokens for each in answers])
        return [each.positions[: shared + 1] for each in answers]

    def bets(self, answers: Answers) -> Any:
        drawn = [pair for each in answers for pair in zip(each.positions, each.tokens, strict=True) if pair[0]]
        drawn = [pair for pair in drawn if len(with_text(pair[0])) == len(pair[0])]
        cells = self.listed - 1
        return sum(log_bets(listed, token, cells) for listed, token in drawn) if drawn and cells > 0 else None


class PromptTokenLogprobs(_LogprobTest):
    """The log-probabilities of the tokens of the prompt itself, and of the alternatives to them.

    One request at a time: vLLM 0.32 on a processor, with LoRA enabled, ends when it runs such a request together with
    others, because its map of adapters has an entry for each request (https://github.com/vllm-project/vllm/pull/51597).
    """

    name = EndpointTestName.PROMPT_LOGPROBS
    one_at_a_time = True

    @staticmethod
    def missing(each: Capabilities) -> str | None:
        return None if each.prompt_logprobs else "returns no log-probabilities of the prompt"

    def parameters(self) -> dict[str, Any]:
        listed = max(1, self.listed)
        if self._is_echo:
            return {"echo": True, **listing_logprobs(EndpointApi.COMPLETIONS, listed)}
        return {"prompt_logprobs": listed}

    @property
    def _is_echo(self) -> bool:
        return any(each.prompt_logprobs is PromptLogprobs.ECHO for each in self.capabilities.values())

    def comparable(self, answers: Answers) -> list[Sequence[Distribution]]:
        found = [each.positions[: -self.max_tokens] if self._is_echo else each.prompt_positions for each in answers]
        return [each[1:] if len(each) > _FEWEST_POSITIONS else () for each in found]


class GreedyFirstToken(PairTest):
    """The first token at temperature 0. It differs where two tokens are nearly tied."""

    name = EndpointTestName.GREEDY_FIRST_TOKEN

    @staticmethod
    def missing(each: Capabilities) -> str | None:
        if each.greedy_repeats is None:
            return "gives no text at temperature 0"
        return None if each.greedy_repeats else "does not repeat itself at temperature 0"

    def _design(self) -> Design:
        return Design(self.name, "of first tokens", 0.1, (0.0, 1.0), tolerance=0.03)

    def parameters(self) -> dict[str, Any]:
        return {"temperature": 0.0}

    def score(self, a: Answers, b: Answers, tokens: int) -> PromptScore | None:
        (a1, a2), (b1, b2) = ([each.whole_text for each in answers] for answers in (a, b))
        within, first, second = (a1 != a2) + (b1 != b2), (a1 != b1) + (a2 != b2), (a1 != b2) + (a2 != b1)
        order = pairing_score(within, first, second)
        return PromptScore(first / 2, float(a1 != a2), float(b1 != b2), tokens, order)


def _shared_start(answers: Sequence[Sequence[str]]) -> int:
    """How many tokens all answers begin with. Tokens without a text of their own may be different ones."""
    columns = enumerate(zip(*answers, strict=False))
    differing = (i for i, tokens in columns if len({*tokens}) > 1 or not with_text(dict.fromkeys(tokens, 0.0)))
    return next(differing, min(map(len, answers)))


def _mean_kld(p: Sequence[Distribution], q: Sequence[Distribution]) -> float:
    return math.fsum(kld_lower_bound(x, y) for x, y in zip(p, q, strict=True)) / len(p)


def _both_ways(p: Sequence[Distribution], q: Sequence[Distribution]) -> float:
    """Symmetric to the last bit, so that ties are ties."""
    forth, back = _mean_kld(p, q), _mean_kld(q, p)
    return min(forth, back) + max(forth, back)


LADDER: tuple[type[PairTest], ...] = (PromptTokenLogprobs, FirstTokenLogprobs, GreedyFirstToken, SampledTexts)
"""The cheapest for the same evidence first."""


def choose_test(
    options: EndpointsOptions, capabilities: Mapping[str, Capabilities]
) -> tuple[PairTest | None, list[str]]:
    """The first of the ladder, or the one that is wanted, that both endpoints allow; and why those before are not."""
    reasons: list[str] = []
    for kind in LADDER:
        if options.test not in (None, kind.name):
            continue
        missing = {side.upper(): why for side, each in capabilities.items() if (why := kind.missing(each))}
        if not missing and not (kind is PromptTokenLogprobs and _methods_differ(capabilities)):
            return kind(options, capabilities), reasons
        why = _clauses(missing) or "A and B return them in different forms"
        reasons.append(f"Not possible: {NAMES[kind.name]}: {why}.")
    return None, reasons


def _clauses(missing: Mapping[str, str]) -> str:
    """ "A lists nothing; B does", or "each lists nothing" if both lack the same."""
    if len(missing) == 2 and len({*missing.values()}) == 1:
        return f"each endpoint {next(iter(missing.values()))}"
    return "; ".join(f"{side} {clause}" for side, clause in missing.items())


def _methods_differ(capabilities: Mapping[str, Capabilities]) -> bool:
    return len({each.prompt_logprobs for each in capabilities.values()}) > 1


NAMES: Mapping[EndpointTestName, str] = {
    EndpointTestName.PROMPT_LOGPROBS: "log-probabilities of the prompt",
    EndpointTestName.FIRST_TOKEN_LOGPROBS: "log-probabilities of the first token",
    EndpointTestName.GREEDY_FIRST_TOKEN: "greedy first tokens",
    EndpointTestName.SAMPLES: "sampled texts",
}
