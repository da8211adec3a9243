"""KL divergence between next-token distributions of which only the most probable tokens are known."""

from __future__ import annotations

import math
from collections.abc import Mapping

LogProbabilities = Mapping[str, float]
"""Token -> the natural logarithm of its probability."""

LEAST_MASS = 1e-6
"""Below this, the probability of all tokens that are not listed is rounding."""


def kld_lower_bound(p: LogProbabilities, q: LogProbabilities) -> float:
    """The least KL(p || q), in nats, of all distributions that have these listed probabilities.

    Tokens are merged into cells: each shared token; those that only p lists; everything else. Merging never increases a
    divergence (data processing inequality). What q gives the tokens that only p lists is not known: between 0 and the
    mass that q does not list, and the value with the smallest divergence is taken.
    """
    shared = p.keys() & q.keys()
    total = math.fsum(math.exp(p[token]) * (p[token] - q[token]) for token in shared)
    only_p = _mass(p) - _mass(p, shared)
    only_q = _mass(q) - _mass(q, shared)
    rest_p, rest_q = _unlisted(p), _unlisted(q)
    given = min(only_p * (only_q + rest_q) / (only_p + rest_p), rest_q)
    total += _term(only_p, given) + _term(rest_p, only_q + rest_q - given)
    return max(total, 0.0)


def unseen_mass(p: LogProbabilities, q: LogProbabilities) -> float:
    """The larger of the probabilities that p and q give to tokens that the other does not list."""
    shared = p.keys() & q.keys()
    return min(max(1 - _mass(p, shared), 1 - _mass(q, shared), 0.0), 1.0)


def _mass(p: LogProbabilities, tokens: set[str] | None = None) -> float:
    return math.fsum(math.exp(p[token]) for token in (p if tokens is None else tokens))


def _unlisted(p: LogProbabilities) -> float:
    return max(1 - _mass(p), LEAST_MASS)


def _term(p: float, q: float) -> float:
    return p * math.log(p / max(q, LEAST_MASS)) if p > 0 else 0.0
