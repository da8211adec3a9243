"""The test of sampled texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deltarank.divergence import TextBets, TextScore, labellings, mmd_squared, permutation_p
from deltarank.jobs.endpoints.evidence import Design, PromptScore
from deltarank.jobs.endpoints.options import EndpointsOptions
from deltarank.jobs.endpoints.pair_test import Answers, PairTest
from deltarank.results import Capabilities, EndpointTestName

_PERMUTATIONS = 999


class SampledTexts(PairTest):
    """Answers sampled at temperature 1, compared by their words and character n-grams: see `TextBets`.

    With four answers of each endpoint, all 70 ways to give out the labels are tried, so that every bet is exactly fair.
    """

    name = EndpointTestName.SAMPLES
    draws = 4
    max_tokens = 32

    @staticmethod
    def missing(each: Capabilities) -> str | None:
        return "gives empty answers" if each.greedy_repeats is None else None

    def __init__(self, options: EndpointsOptions, capabilities: Mapping[str, Capabilities]) -> None:
        super().__init__(options, capabilities)
        self._rng = np.random.default_rng(options.seed)
        self._bets = TextBets()
        self._scores: list[TextScore] = []

    def _design(self) -> Design:
        return Design(self.name, "squared MMD", 0.01, (-0.25, 0.25))

    def parameters(self) -> dict[str, Any]:
        return {}

    def score(self, a: Answers, b: Answers, tokens: int) -> PromptScore | None:
        texts = [each.whole_text for each in (*a, *b)]
        if not any(texts):
            return None
        found = self._bets.score(texts, labellings(self.draws, self.draws, self._rng))
        self._scores.append(found)
        half = self.draws // 2
        halves = labellings(half, self.draws - half, self._rng)[:1]
        noise_a, noise_b = (float(mmd_squared(part, halves)[0]) for part in _diagonal_blocks(found.kernel, self.draws))
        distance = float(found.discrepancies[0])
        return PromptScore(distance, noise_a, noise_b, tokens, label_bets=tuple(found.bets))

    def effect(self, scores: Sequence[PromptScore]) -> float | None:
        """From how well earlier prompts tell the texts apart.

        The area under the curve is at most 1 - (1 - TV)^2 / 2, with the total variation TV of the distributions of
        texts, and a text's KL divergence is at least 2 TV^2 (Pinsker).
        """
        areas = [each.auc for each in self._scores[: len(scores)] if each.auc is not None]
        variation = 1 - np.sqrt(2 * (1 - max(0.5, float(np.mean(areas))))) if areas else 0.0
        return float(2 * variation**2 / self.max_tokens)

    def permutation_p(self, scores: Sequence[PromptScore]) -> float | None:
        statistics = [each.discrepancies for each in self._scores[: len(scores)]]
        chosen = [each[self._rng.integers(len(each), size=_PERMUTATIONS)] for each in statistics]
        return permutation_p(float(np.mean([each[0] for each in statistics])), np.mean(chosen, axis=0))


def _diagonal_blocks(kernel: Any, size: int) -> list[Any]:
    return [kernel[:size, :size], kernel[size:, size:]]
