"""Confidence intervals from a bootstrap over documents: tokens of one document are not independent, documents are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy import stats

from deltarank.divergence.arrays import FloatArray
from deltarank.results import Interval

REPLICATES = 2000
LEVEL = 0.95
_COUNTS_PER_CHUNK = 4_000_000


@dataclass(frozen=True)
class BootstrapTotals:
    """Sums over all documents, (sums,), and over `REPLICATES` resamples of as many documents, (replicates, sums)."""

    totals: FloatArray
    replicates: FloatArray
    documents: int

    def interval(self, statistic: Callable[[FloatArray], FloatArray]) -> Interval:
        """The value of a statistic on all documents and its 95 % confidence interval; no interval for one document.

        The expanded percentile interval (Hesterberg 2015, section 5.3): its percentiles are those of a normal
        distribution at which a t distribution with n - 1 degrees of freedom, scaled by sqrt(n / (n - 1)), would lie.
        A plain percentile interval over few documents is too narrow. Over 8 skewed documents it covers the truth in
        87 % of trials instead of 95 %, this one in 93 %; over 5, in 83 % and 91 %.

        Args:
            statistic: maps sums of shape (..., sums) to values of shape (...).
        """
        value = float(statistic(self.totals))
        values = statistic(self.replicates)
        values = values[np.isfinite(values)]
        if self.documents < 2 or not len(values):
            return Interval(value)
        tail = _tail_probability(self.documents)
        low, high = np.quantile(values, [tail, 1 - tail])
        return Interval(value, float(low), float(high))


def resample(sums: FloatArray, *, seed: int) -> BootstrapTotals:
    """Draws documents with replacement, each with all of its sums, so that ratios stay paired.

    Args:
        sums: (documents, sums), what each document adds to each total.
        seed: for a given seed and number of documents the same documents are drawn, whatever is summed.
    """
    chunks = [counts @ sums for counts in _draw_counts(len(sums), seed)]
    return BootstrapTotals(sums.sum(axis=0), np.concatenate(chunks), len(sums))


def _draw_counts(documents: int, seed: int) -> Iterator[FloatArray]:
    """How often each document is drawn, (some replicates, documents); `REPLICATES` rows in all."""
    random = np.random.default_rng(seed)
    probabilities = np.full(documents, 1 / documents)
    step = max(1, _COUNTS_PER_CHUNK // documents)
    for start in range(0, REPLICATES, step):
        rows = min(step, REPLICATES - start)
        yield random.multinomial(documents, probabilities, size=rows).astype(np.float64)


def _tail_probability(documents: int) -> float:
    """The probability left out at each end of the interval."""
    quantile = stats.t.ppf((1 + LEVEL) / 2, documents - 1) * math.sqrt(documents / (documents - 1))
    return float(stats.norm.sf(quantile))
