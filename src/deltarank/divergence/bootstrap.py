"""Intervals from a bootstrap over documents: tokens of one document are no independent draws, documents are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from deltarank.results import Interval

REPLICATES = 2000
LEVEL = 0.95
_ENTRIES = 4_000_000

Sums = NDArray[np.float64]


@dataclass(frozen=True)
class Resampled:
    """Sums over all documents, (sums,), and over `REPLICATES` resamples of as many documents, (replicates, sums)."""

    whole: Sums
    replicates: Sums
    documents: int

    def interval(self, figure: Callable[[Sums], Sums]) -> Interval:
        """`figure` takes (..., sums) to (...); its value on the whole, and its 95 % interval over the resamples.

        The expanded percentile interval (Hesterberg 2015, section 5.3): the percentiles asked for are those of a
        normal at which a t distribution with n - 1 degrees of freedom and the n / (n - 1) of the variance would lie.
        A plain percentile interval over few documents is too narrow: over 8 skewed ones it holds the truth in 87 % of
        trials where it says 95, this one in 93 %; over 5, in 83 % and 91 %.
        """
        value = float(figure(self.whole))
        found = figure(self.replicates)
        found = found[np.isfinite(found)]
        if self.documents < 2 or not len(found):
            return Interval(value)
        tail = _tail(self.documents)
        low, high = np.quantile(found, [tail, 1 - tail])
        return Interval(value, float(low), float(high))


def resample(sums: Sums, *, seed: int) -> Resampled:
    """Draws documents with replacement, each with all its sums at once, so that ratios stay paired.

    Args:
        sums: (documents, sums): what each document adds to each total.
        seed: the same seed and number of documents draw the same documents, whatever is summed.
    """
    parts = [counts @ sums for counts in _draws(len(sums), seed)]
    return Resampled(sums.sum(axis=0), np.concatenate(parts), len(sums))


def _draws(documents: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """How often each document was drawn, (some replicates, documents), `REPLICATES` rows in all."""
    random = np.random.default_rng(seed)
    even = np.full(documents, 1 / documents)
    step = max(1, _ENTRIES // documents)
    for start in range(0, REPLICATES, step):
        rows = min(step, REPLICATES - start)
        yield random.multinomial(documents, even, size=rows).astype(np.float64)


def _tail(documents: int) -> float:
    spread = stats.t.ppf((1 + LEVEL) / 2, documents - 1) * math.sqrt(documents / (documents - 1))
    return float(stats.norm.sf(spread))
