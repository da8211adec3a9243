"""Scores of one prompt whose expectation is known if two endpoints are the same, for the e-values over prompts.

If A and B answer alike, the labels A and B on the answers to one prompt mean nothing: all ways to give them out are
equally probable. A score ranks the observed labels among all of them, so its expectation is exact, whatever the noise.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from deltarank.divergence.arrays import FloatArray

PAIRING_CHANCE = 1 / 3
"""Four answers are paired in three ways."""

MOST_LABELLINGS = 500


def pairing_score(within: float, first_cross: float, second_cross: float) -> float:
    """1 if the answers of each endpoint are closest to each other, less if a pairing across is as close or closer.

    Of four answers A1, A2, B1, B2: `within` is d(A1, A2) + d(B1, B2), the others are d(A1, B1) + d(A2, B2) and
    d(A1, B2) + d(A2, B1). Ties share the score, so its expectation is exactly 1/3 if the labels mean nothing.
    """
    smallest = min(within, first_cross, second_cross)
    return (within == smallest) / sum(each == smallest for each in (within, first_cross, second_cross))


def mmd_squared(kernel: FloatArray, is_a: FloatArray) -> FloatArray:
    """The unbiased squared maximum mean discrepancy (Gretton et al. 2012), (labellings,).

    Args:
        kernel: (texts, texts).
        is_a: 1 for a text of A and 0 for one of B, (labellings, texts). Both have at least two.
    """
    is_b = 1 - is_a
    off_diagonal = kernel - np.diag(np.diag(kernel))
    n_a, n_b = is_a.sum(axis=1), is_b.sum(axis=1)

    def mean(left: FloatArray, right: FloatArray, pairs: FloatArray) -> FloatArray:
        return np.asarray(np.einsum("li,ij,lj->l", left, off_diagonal, right) / pairs)

    within = mean(is_a, is_a, n_a * (n_a - 1)) + mean(is_b, is_b, n_b * (n_b - 1))
    return np.asarray(within - 2 * mean(is_a, is_b, n_a * n_b))


def labellings(n_a: int, n_b: int, rng: np.random.Generator) -> FloatArray:
    """Ways to call n_a of n_a + n_b texts A, (labellings, texts): the observed one first, then all others or a sample.

    A sample leaves the rank of the first one exact: under exchangeability it is as random as the others.
    """
    total = n_a + n_b
    observed = np.r_[np.ones(n_a), np.zeros(n_b)]
    if math.comb(total, n_a) <= MOST_LABELLINGS:
        others = [_labelled(total, chosen) for chosen in itertools.combinations(range(total), n_a)]
        return np.array([observed, *(each for each in others if (each != observed).any())])
    return np.array([observed, *(rng.permutation(observed) for _ in range(MOST_LABELLINGS - 1))])


def _labelled(total: int, chosen: Sequence[int]) -> FloatArray:
    labels = np.zeros(total)
    labels[list(chosen)] = 1
    return labels


def permutation_p(observed: float, permuted: FloatArray) -> float:
    """(1 + b) / (1 + B), where b of B permuted statistics are at least the observed one (Phipson and Smyth 2010)."""
    return float((1 + (permuted >= observed - 1e-12).sum()) / (1 + len(permuted)))
