"""Evidence that may be looked at after every vote: e-values, their intervals, and the votes that they need.

An e-value is the wealth of somebody who bets, at fair odds, against chance: under chance its expectation is at most 1,
whenever one stops (a test martingale). By Ville's inequality (1939) it ever reaches 1 / alpha with probability alpha at
most, so 1 / max e is a p-value that stays valid for people who stop when they like the score.

The bets here are a mixture (Robbins 1970): each score r in [0, 1] with expectation q under chance multiplies the wealth
by 1 + lambda (r - q), and lambda is uniform on [0, 1 / q]. For scores of 0 and 1 this is the likelihood ratio of a
Bernoulli variable with a uniform prior on (q, 1], the beta-binomial mixture; for others it is a mixture of the capital
processes of Waudby-Smith and Ramdas (2024).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
from scipy.special import bdtr, betaln, logsumexp, roots_legendre

from deltarank.divergence.arrays import FloatArray
from deltarank.results import Interval

ALPHA = 0.05
CHANCE = 0.5
POWER = 0.8

_NODES = 256
"""Of a Gauss-Legendre quadrature over lambda: exact for up to 511 scores, and far below rounding beyond."""

_BISECTIONS = 24
_MOST_VOTES = 20_000


def log_e_values(
    scores: Sequence[float] | FloatArray, chance: float = CHANCE, *, last_only: bool = False
) -> FloatArray:
    """The log of the e-value after each score that they exceed `chance` on average, (scores,), or after the last, (1,).

    Valid under "each score has expectation `chance` at most, given those before it".
    """
    nodes, log_weights = _quadrature()
    growth = np.log1p(np.multiply.outer(np.asarray(scores, np.float64) - chance, nodes / chance))
    wealth = growth.sum(axis=0, keepdims=True) if last_only else growth.cumsum(axis=0)
    return np.asarray(logsumexp(wealth + log_weights, axis=1), np.float64)


def log_e_values_two_sided(
    scores: Sequence[float] | FloatArray, chance: float = CHANCE, *, last_only: bool = False
) -> FloatArray:
    """The log of the e-value after each score, or after the last, that their expectation is not `chance`.

    The average of both sides, weighted with 1 - chance and chance. For scores of 0 and 1 the prior is then uniform on
    [0, 1]: e = B(1 + k, 1 + n - k) / (q^k (1 - q)^(n - k)) for k ones among n.
    """
    values = np.asarray(scores, np.float64)
    above = log_e_values(values, chance, last_only=last_only)
    below = log_e_values(1 - values, 1 - chance, last_only=last_only)
    return np.logaddexp(above + math.log1p(-chance), below + math.log(chance))


@cache
def _quadrature() -> tuple[FloatArray, FloatArray]:
    """Nodes in (0, 1) and the logs of their weights, which add up to 1."""
    nodes, weights = roots_legendre(_NODES)
    return (nodes + 1) / 2, np.log(weights / 2)


def confidence_interval(log_e: Callable[[float], float], centre: float, alpha: float = ALPHA) -> Interval:
    """The expectations that an e-value does not reject: {q: e(q) < 1 / alpha}, a confidence sequence.

    Args:
        log_e: the log of the e-value against an expectation of q; it grows with the distance from `centre`.
        centre: the mean of the scores.
    """
    limit = -math.log(alpha)
    ends = [_boundary(lambda q: log_e(q) < limit, centre, end) for end in (0.0, 1.0)]
    return Interval(centre, *ends)


def _boundary(is_inside: Callable[[float], bool], inside: float, outside: float) -> float:
    """Where the interval ends between the two; `outside` is the end of the scale, and is not tried itself."""
    if inside == outside:
        return outside
    low, high = inside, outside
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if is_inside(middle) else (low, middle)
    return outside if abs(low - outside) < 1e-6 else low


def sign_flip_p_value(scores: Sequence[int]) -> float:
    """P(sum of s_i x_i >= sum of x_i) for independent fair signs s_i: how often luck does as well (exact).

    With scores of 1 and -1 this is the one-sided binomial (sign) test.
    """
    sizes = [abs(score) for score in scores]
    probabilities = np.ones(1)
    for size in sizes:
        flipped = np.zeros(len(probabilities) + 2 * size)
        flipped[: len(probabilities)] += probabilities / 2
        flipped[2 * size :] += probabilities / 2
        probabilities = flipped
    return min(1.0, float(probabilities[sum(sizes) + sum(scores) :].sum()))


@cache
def votes_needed(
    share: float, *, two_sided: bool = False, alpha: float = ALPHA, power: float = POWER, most: int = _MOST_VOTES
) -> int | None:
    """Votes after which an e-value of 1 / alpha has been reached with probability `power`, if each is right with
    probability `share`; None if more than `most` would be needed.

    Exact, by the distribution of the number of right votes among those that have not reached it.
    """
    log_one_minus, log_share = math.log1p(-share), math.log(share)
    running = np.ones(1)
    for votes in range(1, most + 1):
        grown = np.zeros(votes + 1)
        grown[:-1] += running * math.exp(log_one_minus)
        grown[1:] += running * math.exp(log_share)
        first = _first_found(votes, two_sided, alpha)
        grown[first:] = 0.0
        if two_sided:
            grown[: votes + 1 - first] = 0.0
        running = grown
        if 1 - running.sum() >= power:
            return votes
    return None


@cache
def _first_found(votes: int, two_sided: bool, alpha: float) -> int:
    """The least number of right votes with an e-value of 1 / alpha; votes + 1 if all of them are not enough."""
    enough = -math.log(alpha) - 1e-12
    majority = range(votes // 2 + 1, votes + 1)  # in which the e-value grows with each right vote
    return majority.start + bisect_left(majority, enough, key=lambda right: _log_beta_binomial(right, votes, two_sided))


def _log_beta_binomial(right: int, votes: int, two_sided: bool) -> float:
    """The log of the e-value at chance 1/2 for so many right ones, in closed form."""
    # B(1 + k, 1 + n - k) 2^n, for k right ones among n.
    both_sides = float(betaln(1 + right, 1 + votes - right)) + votes * math.log(2)
    if two_sided:
        return both_sides
    # The share of Beta(1 + k, 1 + n - k) above 1/2 is P(Binomial(n + 1, 1/2) <= k); the prior's share is 1/2.
    return both_sides + math.log(2 * bdtr(right, votes + 1, 0.5))
