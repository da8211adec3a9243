"""Bets that the labels A and B on sampled texts mean something: within each prompt, and by what earlier prompts taught.

A text is described by its words and its character n-grams: log(1 + count), hashed, each kind scaled to length one, and
multiplied by inverse document frequencies among the texts so far (TF-IDF). Two statistics compare the texts to one
prompt, under every way to give out the labels:

- the squared maximum mean discrepancy (Gretton et al. 2012) with the inner product of these features as the kernel;
- the difference between A's and B's texts along the mean difference at earlier prompts, as a nearest-mean classifier
  trained on them would see it (a sequential classifier two-sample test: Podkopaev and Ramdas 2023). It gathers what is
  alike at all prompts: a change of style.

A third is the squared MMD of their first characters, with a Hamming kernel: what the answers begin with.

If A and B answer alike, all labellings are equally probable, whatever the texts and the earlier prompts are. So a bet
that multiplies its stake by exp(t z) / mean over labellings of exp(t z), z the statistic in standard deviations of its
labellings, is fair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse
from scipy.special import logsumexp
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.preprocessing import normalize

from deltarank.divergence.arrays import FloatArray
from deltarank.divergence.exchangeability import mmd_squared

TILTS = np.array([0.1, 0.25, 0.5, 1.0, 2.0])
"""Stakes: small ones gain from small differences over many prompts, large ones from large differences over few."""

MOST_CHARACTERS = 1000
_OPENING = 8
"""Characters at the beginning; further on, those of two answers no longer belong together."""

_BUCKETS = 2**16
_END = "\0"
"""After each text, so that an empty one has a feature, too."""

_COUNTERS = tuple(
    HashingVectorizer(n_features=_BUCKETS, alternate_sign=False, norm=None, lowercase=False, **settings)
    for settings in (
        {"analyzer": "char", "ngram_range": (1, 4)},
        {"analyzer": "word", "token_pattern": r"\w+|[^\w\s]"},
    )
)


@dataclass(frozen=True)
class TextScore:
    """The texts to one prompt.

    discrepancies  the squared MMD, (labellings,), the true labelling first
    bets           the logarithms of what each bet multiplies its stake by, (bets,)
    kernel         (texts, texts)
    auc            the share of pairs of a text of A and one of B that the earlier prompts tell apart rightly; 1/2 by
                   chance. None for the first prompt
    """

    discrepancies: FloatArray
    bets: FloatArray
    kernel: FloatArray
    auc: float | None


class TextBets:
    """Scores the texts of one prompt after another."""

    def __init__(self) -> None:
        self._texts = 0
        self._containing = np.zeros(len(_COUNTERS) * _BUCKETS)
        self._direction = np.zeros(len(_COUNTERS) * _BUCKETS)

    def score(self, texts: Sequence[str], is_a: FloatArray) -> TextScore:
        """
        Args:
            texts: to one prompt.
            is_a: labellings as of `labellings()`, (labellings, texts); the true one first.
        """
        features = _features(texts)
        self._texts += len(texts)
        self._containing += np.asarray((features > 0).sum(axis=0)).ravel()
        rarity = 1 + np.log((1 + self._texts) / (1 + self._containing))
        weighted = normalize(features.multiply(rarity))
        kernel = (weighted @ weighted.T).toarray()
        discrepancies = mmd_squared(kernel, is_a)
        along = weighted @ (rarity * self._direction)
        learned = _standardised(is_a @ along)
        both = (learned + _standardised(discrepancies)) / np.sqrt(2)
        auc = _auc(along, is_a[0] == 1) if self._direction.any() else None
        self._direction += features.T @ (is_a[0] / is_a[0].sum() - (1 - is_a[0]) / (1 - is_a[0]).sum())
        opening = _standardised(mmd_squared(_hamming_kernel(texts), is_a))
        bets = np.concatenate([fair_bets(each) for each in (learned, both, opening)])
        return TextScore(discrepancies, bets, kernel, auc)


def fair_bets(statistics: FloatArray) -> FloatArray:
    """log exp(t z_0) / mean of exp(t z) over the labellings, for each t of `TILTS`. Its exp has expectation 1."""
    tilted = np.multiply.outer(TILTS, statistics)
    return np.asarray(tilted[:, 0] - logsumexp(tilted, axis=1) + np.log(len(statistics)))


def log_wealth(bets: FloatArray) -> FloatArray:
    """The log of the e-value after each prompt, (prompts,), of equal stakes in all bets, (prompts, bets)."""
    return np.asarray(logsumexp(np.cumsum(bets, axis=0), axis=1) - np.log(bets.shape[1]))


def _features(texts: Sequence[str]) -> Any:
    """(texts, features), sparse."""
    marked = [text[:MOST_CHARACTERS] + _END for text in texts]
    blocks = [counter.transform(marked) for counter in _COUNTERS]
    for block in blocks:
        block.data = np.log1p(block.data)
    return sparse.hstack([normalize(block) for block in blocks]).tocsr()


def _hamming_kernel(texts: Sequence[str]) -> FloatArray:
    """The share of the first characters that are equal, (texts, texts); ends of text are padded."""
    codes = np.array([[*map(ord, text[:_OPENING].ljust(_OPENING, _END))] for text in texts])
    return np.asarray((codes[:, None] == codes[None]).mean(axis=2), np.float64)


def _standardised(statistics: FloatArray) -> FloatArray:
    """In standard deviations; zeros where all labellings give the same."""
    spread = statistics.std()
    centred = statistics - statistics.mean()
    return centred / spread if spread > 1e-9 * max(1.0, np.abs(statistics).max()) else np.zeros_like(statistics)


def _auc(scores: FloatArray, is_a: Any) -> float:
    higher = scores[is_a][:, None] - scores[~is_a][None]
    return float((np.sign(higher) + 1).mean() / 2)
