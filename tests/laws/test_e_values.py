"""What holds of evidence that is looked at after every vote: against ville, scipy and simulated voters."""

import math
from itertools import product

import numpy as np
import pytest
import ville
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import betaln
from scipy.stats import beta, binom

from deltarank.divergence import (
    abx_bound,
    blind_bound,
    confidence_interval,
    log_e_values,
    log_e_values_two_sided,
    sign_flip_p_value,
    votes_needed,
)
from deltarank.results import BlindBound

VOTES = st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=60)
SCORES = st.lists(st.floats(0, 1), min_size=1, max_size=40)


def coin_flips(tests: int, votes: int, share: float = 0.5, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random((tests, votes)) < share).astype(float)


def one_sided(right: np.ndarray) -> np.ndarray:
    """The log e-values of many voters, (tests, votes): the closed form by scipy's incomplete beta function."""
    k, n = right.cumsum(axis=1), np.arange(1, right.shape[1] + 1)
    return betaln(1 + k, 1 + n - k) + beta.logsf(0.5, 1 + k, 1 + n - k) + math.log(2) + n * math.log(2)


@given(VOTES)
def test_of_votes_the_two_sided_e_value_is_that_of_ville(votes):
    theirs = ville.BernoulliTest(0.5).update(np.array(votes)).log_e_values_

    assert log_e_values_two_sided(votes) == pytest.approx(theirs, abs=1e-9)


@given(VOTES)
def test_the_one_sided_e_value_is_the_closed_form(votes):
    assert log_e_values(votes) == pytest.approx(one_sided(np.array([votes]))[0], abs=1e-9)


@pytest.mark.parametrize("share", [0.5, 0.8, 1.0])
def test_a_thousand_votes_lose_no_digits(share):
    votes = coin_flips(1, 3000, share)

    assert log_e_values(votes[0]) == pytest.approx(one_sided(votes)[0], rel=1e-9, abs=1e-8)


@given(SCORES, st.floats(0.05, 0.95))
def test_a_bet_at_fair_odds_wins_nothing_on_average(scores, chance):
    """After any scores, the mean e-value over a next score of 1 (with probability `chance`) or 0 is the present one."""
    for e_values in (log_e_values, log_e_values_two_sided):
        now, up, down = (math.exp(e_values([*scores, *more], chance)[-1]) for more in ([], [1.0], [0.0]))
        assert chance * up + (1 - chance) * down == pytest.approx(now, rel=1e-9)


@settings(max_examples=20)
@given(VOTES)
def test_the_interval_is_that_of_ville(votes):
    theirs = ville.BernoulliCS(0.05, intersect=False).update(np.array(votes))
    ours = confidence_interval(lambda q: float(log_e_values_two_sided(votes, q)[-1]), float(np.mean(votes)))

    assert (ours.low, ours.high) == pytest.approx((theirs.lower_[-1], theirs.upper_[-1]), abs=2e-6)


def test_coin_flippers_who_stop_when_they_like_are_caught_at_most_as_often_as_promised():
    """10,000 voters of 200 votes each: a rule that stops at the best moment is the maximum over all moments."""
    highest = one_sided(coin_flips(10_000, 200)).max(axis=1)

    for alpha in (0.05, 0.01):
        caught = int((highest >= -math.log(alpha)).sum())
        assert binom.sf(caught - 1, 10_000, alpha) > 0.001  # no more than luck explains above alpha
        assert caught > 0


def test_a_fixed_test_would_be_fooled_by_stopping():
    """What the e-value is for: the binomial p-value at its lowest is under 0.05 for many coin flippers."""
    right = coin_flips(2000, 200)
    k, n = right.cumsum(axis=1), np.arange(1, 201)

    assert (binom.sf(k - 1, n, 0.5).min(axis=1) <= 0.05).mean() > 0.15


NEEDED = {0.6: (325, 376), 0.75: (43, 50), 0.9: (14, 16)}
"""Share -> votes that find it with power 0.8, one-sided and two-sided."""


@pytest.mark.parametrize("share", NEEDED)
def test_voters_are_found_after_the_tabulated_number_of_votes(share):
    assert (votes_needed(share), votes_needed(share, two_sided=True)) == NEEDED[share]

    votes = NEEDED[share][0]
    found = one_sided(coin_flips(4000, votes, share, seed=1)) >= math.log(20)
    assert found.any(axis=1).mean() > 0.8 - 0.02
    assert found[:, :-1].any(axis=1).mean() < 0.8 + 0.02


def test_who_is_hardly_better_than_luck_is_not_found():
    assert votes_needed(0.501, most=500) is None


@pytest.mark.parametrize(("right", "votes"), [(17, 24), (24, 24), (0, 3), (5, 9), (12, 24)])
def test_of_one_voter_luck_is_the_binomial_tail(right, votes):
    assert sign_flip_p_value([1] * right + [-1] * (votes - right)) == pytest.approx(binom.sf(right - 1, votes, 0.5))


@given(st.lists(st.integers(-4, 4), max_size=9))
def test_luck_counts_the_ways_to_flip_signs(scores):
    sums = [sum(s * x for s, x in zip(signs, scores, strict=True)) for signs in product((1, -1), repeat=len(scores))]

    assert sign_flip_p_value(scores) == pytest.approx(np.mean([each >= sum(scores) for each in sums]))


def test_nobody_beats_the_bound_of_abx():
    """Two models of replies with four equally long texts, and the judge who knows both, for every possible trial."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        p, q = rng.dirichlet(np.ones(4) * 3, size=2)
        pair, swapped = np.multiply.outer(p, q), np.multiply.outer(q, p)
        x_is_a = np.multiply.outer(pair, p) + np.multiply.outer(swapped, q)
        x_is_b = np.multiply.outer(pair, q) + np.multiply.outer(swapped, p)
        best = np.maximum(x_is_a, x_is_b).sum() / 4
        one = 0.5 + np.abs(p - q).sum() / 4
        two = 0.5 + np.abs(pair - swapped).sum() / 4
        assert abx_bound(BlindBound(1, one, two)) == pytest.approx(best)
        assert abx_bound(blind_bound(float(p @ np.log(p / q)), 1)) >= best
