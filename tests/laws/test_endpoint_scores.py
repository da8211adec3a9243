"""The scores by which endpoints are compared: bounds that hold, exact expectations, e-values that seldom err."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltarank.divergence import (
    PAIRING_CHANCE,
    TextBets,
    kld_lower_bound,
    labellings,
    log_wealth,
    mmd_squared,
    pairing_score,
    permutation_p,
    unseen_mass,
)
from deltarank.jobs.endpoints.evidence import Design, PromptScore
from deltarank.results import EndpointTestName, EndpointVerdictKind

ALPHA = 0.05
LOGPROBS = Design(EndpointTestName.FIRST_TOKEN_LOGPROBS, "nats per token", 0.002, (0.0, 0.01), tolerance=0.002)


def distributions(seed: int, tokens: int, spread: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    p, q = (rng.standard_normal(tokens) * spread for _ in range(2))
    return p - np.log(np.exp(p).sum()), q - np.log(np.exp(q).sum())


def listed(p: np.ndarray, most: int) -> dict[str, float]:
    return {str(i): float(p[i]) for i in np.argsort(-p)[:most]}


@given(st.integers(0, 2**32), st.integers(2, 60), st.floats(0.01, 6), st.integers(1, 60), st.integers(1, 60))
def test_listed_tokens_never_show_more_than_the_true_divergence(
    seed: int, tokens: int, spread: float, of_p: int, of_q: int
) -> None:
    p, q = distributions(seed, tokens, spread)
    truth = float((np.exp(p) * (p - q)).sum())

    assert 0 <= kld_lower_bound(listed(p, of_p), listed(q, of_q)) <= truth + 1e-4
    assert 0 <= unseen_mass(listed(p, of_p), listed(q, of_q)) <= 1


@given(st.integers(0, 2**32), st.integers(2, 60), st.floats(0.01, 3))
def test_whole_lists_show_the_divergence(seed: int, tokens: int, spread: float) -> None:
    p, q = distributions(seed, tokens, spread)
    truth = float((np.exp(p) * (p - q)).sum())

    assert kld_lower_bound(listed(p, tokens), listed(q, tokens)) == pytest.approx(truth, abs=1e-4)
    assert kld_lower_bound(listed(p, tokens), listed(p, tokens)) == 0


def test_disjoint_lists_are_far_apart() -> None:
    assert kld_lower_bound({"a": np.log(0.99)}, {"b": np.log(0.99)}) > 4


@given(st.lists(st.integers(0, 3), min_size=6, max_size=6))
def test_the_labels_of_four_answers_have_an_exact_expectation(distances: list[int]) -> None:
    """Over all ways to name four answers A1, A2, B1, B2, whatever their distances are, ties included."""
    d = dict(zip(itertools.combinations(range(4), 2), distances, strict=True))

    def between(i: int, j: int) -> int:
        return d[min(i, j), max(i, j)]

    scores = [
        pairing_score(
            between(a1, a2) + between(b1, b2), between(a1, b1) + between(a2, b2), between(a1, b2) + between(a2, b1)
        )
        for a1, a2, b1, b2 in itertools.permutations(range(4))
    ]
    assert np.mean(scores) == pytest.approx(PAIRING_CHANCE)


@settings(max_examples=8)
@given(st.lists(st.text("ab ", max_size=6), min_size=12, max_size=12))
def test_bets_on_sampled_texts_are_exactly_fair(texts: list[str]) -> None:
    """Over all ways to give three of six texts to A, after a prompt that taught something, the mean gain is nothing."""
    labels = labellings(3, 3, np.random.default_rng(0))
    gains = []
    for i in range(len(labels)):
        bets = TextBets()
        bets.score(texts[6:], labels)
        gains.append(np.exp(bets.score(texts[:6], np.r_[labels[i : i + 1], np.delete(labels, i, axis=0)]).bets))

    assert len(labels) == 20
    assert np.mean(gains, axis=0) == pytest.approx(np.ones(len(gains[0])))


def sampled(rng: np.random.Generator, prompts: int, style: float) -> float:
    """The log of the e-value when B says "thou" with a probability that is `style` higher, whatever the subject is."""
    bets, found = TextBets(), []
    for prompt in range(prompts):
        texts = [
            " ".join(
                "thou" if rng.random() < 0.2 + style * (i >= 4) else f"word{prompt}{rng.integers(9)}" for _ in range(8)
            )
            for i in range(8)
        ]
        found.append(bets.score(texts, labellings(4, 4, rng)).bets)
    return float(log_wealth(np.array(found)).max())


def test_a_style_is_found_across_prompts_and_equal_texts_seldom_differ() -> None:
    """Of 30 runs with 5 % allowed, 6 or more would happen by chance in 0.4 of 100 such tests."""
    limit = -np.log(ALPHA)
    equal = [sampled(np.random.default_rng(seed), 12, 0.0) >= limit for seed in range(30)]
    styled = [sampled(np.random.default_rng(seed), 12, 0.4) >= limit for seed in range(5)]

    assert sum(equal) < 6
    assert sum(styled) == 5


def test_the_discrepancy_is_that_of_its_definition() -> None:
    kernel = np.array([[1, 1, 0, 0.5], [1, 1, 0, 0.5], [0, 0, 1, 0.5], [0.5, 0.5, 0.5, 1]])
    is_a = np.array([[1.0, 1.0, 0.0, 0.0]])

    assert mmd_squared(kernel, is_a)[0] == pytest.approx(1 + 0.5 - 2 * (0 + 0.5 + 0 + 0.5) / 4)


def test_a_permutation_p_is_never_zero() -> None:
    assert permutation_p(1.0, np.zeros(999)) == 1 / 1000
    assert permutation_p(0.0, np.zeros(9)) == 1


def simulated(rng: np.random.Generator, prompts: int, apart: float, noise: float) -> list[PromptScore]:
    """Answers are points on a line: A's at 0, B's at `apart`, with noise; a distance is the square of a difference."""
    scores = []
    for _ in range(prompts):
        a1, a2 = noise * rng.standard_normal(2)
        b1, b2 = apart + noise * rng.standard_normal(2)
        within, first, second = ((a1 - a2) ** 2 + (b1 - b2) ** 2, (a1 - b1) ** 2 + (a2 - b2) ** 2, 0.0)
        second = (a1 - b2) ** 2 + (a2 - b1) ** 2
        order = pairing_score(within, first, second)
        scores.append(PromptScore(first / 2, (a1 - a2) ** 2, (b1 - b2) ** 2, 1, order))
    return scores


def decisions(apart: float, noise: float, runs: int = 200, prompts: int = 40) -> list[EndpointVerdictKind | None]:
    return [
        LOGPROBS.decide(simulated(np.random.default_rng(seed), prompts, apart, noise), ALPHA) for seed in range(runs)
    ]


@pytest.mark.parametrize(
    ("apart", "noise"),
    [
        (0.04, 0.0),  # a constant 0.0016, below the tolerance
        (0.0, 0.3),  # 90 times the tolerance, and each endpoint is as far from itself
        (0.0, 0.0),
    ],
)
def test_equal_endpoints_are_seldom_called_different(apart: float, noise: float) -> None:
    """Of 200 runs, with 5 % allowed: 18 or more would happen by chance in 1.4 of 100 such tests."""
    assert decisions(apart, noise).count(EndpointVerdictKind.DIFFERENT) < 18


def test_endpoints_at_the_tolerance_are_seldom_called_the_same() -> None:
    assert decisions(0.002**0.5 + 1e-9, 0.0).count(EndpointVerdictKind.SAME) < 18


@pytest.mark.parametrize(
    ("apart", "noise", "kind"),
    [(0.1, 0.01, EndpointVerdictKind.DIFFERENT), (0.01, 0.001, EndpointVerdictKind.SAME)],
)
def test_what_is_clear_is_decided(apart: float, noise: float, kind: EndpointVerdictKind) -> None:
    assert decisions(apart, noise, runs=20).count(kind) == 20
