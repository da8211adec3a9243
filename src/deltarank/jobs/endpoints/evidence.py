"""The evidence of one test over prompts: e-values that the endpoints differ, and that they are alike.

Two hypotheses have to fall before endpoints are called different:

- "A and B answer alike": the labels on the answers to one prompt mean nothing (`divergence/exchangeability.py`). This
  covers all noise that comes and goes with the answers: batches, caches, several variants behind one address.
- "their mean distance is at most the tolerance": equal weights on other kernels differ by a constant bit, which no
  number of answers makes noise of. Distances are bounded at `ceiling` for this one.

The e-value of the union of both is the smaller one. They are called the same when "their mean distance is at least
`same_below`" falls, with distances bounded to `same_range`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deltarank.divergence import PAIRING_CHANCE, log_e_of_bets, log_e_values, log_wealth, resample
from deltarank.results import (
    EndpointTest,
    EndpointTestName,
    EndpointVerdictKind,
    EvidencePoint,
    Interval,
    ListedText,
)

FloatArray = NDArray[np.float64]
_LARGEST_LOG = 600.0
"""exp of it is still a float."""


@dataclass(frozen=True)
class PromptScore:
    """What the answers to one prompt say.

    distance     between A and B; `noise_a` between two answers of A, `noise_b` of B
    tokens       of prompts and answers
    order        the score of the labels, with expectation `PAIRING_CHANCE` if they mean nothing
    label_bets   in its place: the logarithms of what fair bets on the labels multiply their stakes by
    unseen       probability on tokens that the lists do not share
    certainty    the probability of the most probable token
    bets_a       on the tokens of A at the odds of its lists (`divergence.log_bets`); `bets_b` of B
    """

    distance: float
    noise_a: float
    noise_b: float
    tokens: int
    order: float = PAIRING_CHANCE
    label_bets: tuple[float, ...] = ()
    unseen: float | None = None
    certainty: float | None = None
    bets_a: FloatArray | None = None
    bets_b: FloatArray | None = None


@dataclass(frozen=True)
class Design:
    """What is tested: see the module."""

    name: EndpointTestName
    unit: str
    same_below: float
    same_range: tuple[float, float]
    tolerance: float | None = None
    ceiling: float = 1.0

    def log_e_different(self, scores: Sequence[PromptScore]) -> FloatArray:
        """After each prompt, (prompts,)."""
        if scores and scores[0].label_bets:
            order = log_wealth(np.array([each.label_bets for each in scores]))
        else:
            order = log_e_values([each.order for each in scores], PAIRING_CHANCE)
        if self.tolerance is None:
            return order
        distances = np.clip([each.distance for each in scores], 0, self.ceiling) / self.ceiling
        return np.minimum(order, log_e_values(distances, self.tolerance / self.ceiling))

    def log_e_same(self, scores: Sequence[PromptScore]) -> FloatArray:
        """After each prompt, (prompts,)."""
        low, high = self.same_range
        closeness = (high - np.clip([each.distance for each in scores], low, high)) / (high - low)
        return log_e_values(closeness, (high - self.same_below) / (high - low))

    def decide(self, scores: Sequence[PromptScore], alpha: float) -> EndpointVerdictKind | None:
        """What the prompts so far prove, whichever was proved first."""
        if not scores:
            return None
        limit = -np.log(alpha)
        reached = {
            EndpointVerdictKind.DIFFERENT: _first(self.log_e_different(scores), limit),
            EndpointVerdictKind.SAME: _first(self.log_e_same(scores), limit),
        }
        kind = min(reached, key=lambda each: reached[each])
        return kind if reached[kind] < len(scores) else None


def summarise_test(
    design: Design,
    scores: Sequence[PromptScore],
    alpha: float,
    *,
    permutation_p: float | None = None,
    effect: float | None = None,
) -> EndpointTest:
    """The test after these prompts, at least one.

    Args:
        permutation_p: see `EndpointTest`.
        effect: nats per token that A and B are apart at least.
    """
    different, same = design.log_e_different(scores), design.log_e_same(scores)
    return EndpointTest(
        name=design.name,
        n=len(scores),
        unit=design.unit,
        statistic=float(np.mean([each.distance for each in scores])),
        interval=_interval([each.distance for each in scores]),
        tolerance=design.same_below,
        p=min(1.0, float(np.exp(-different.max()))),
        permutation_p=permutation_p,
        e_value=float(np.exp(min(different.max(), _LARGEST_LOG))),
        e_value_same=float(np.exp(min(same.max(), _LARGEST_LOG))),
        effect=effect,
        control_aa=float(np.mean([each.noise_a for each in scores])),
        control_bb=float(np.mean([each.noise_b for each in scores])),
        unseen=_mean_of_known([each.unseen for each in scores]),
        certainty=_mean_of_known([each.certainty for each in scores]),
        text_a=_listed_text([each.bets_a for each in scores]),
        text_b=_listed_text([each.bets_b for each in scores]),
        decided=design.decide(scores, alpha),
        evidence=tuple(_points(scores, different, same)),
    )


def _mean_of_known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _listed_text(bets: Sequence[FloatArray | None]) -> ListedText | None:
    known = [each for each in bets if each is not None]
    if not known:
        return None
    more, less = (float(np.exp(min(each, _LARGEST_LOG))) for each in log_e_of_bets(known))
    return ListedText(e_value_sharper=more, e_value_surprising=less)


def _interval(distances: Sequence[float]) -> Interval:
    """Of the mean, bootstrapped over prompts."""
    return resample(np.array(distances)[:, None], seed=0).interval(lambda sums: sums[..., 0] / len(distances))


def _points(scores: Sequence[PromptScore], different: FloatArray, same: FloatArray) -> Sequence[EvidencePoint]:
    tokens = np.cumsum([each.tokens for each in scores])
    return [
        EvidencePoint(int(tokens[i]), float(different[i]), float(same[i]), each.distance, each.noise_a, each.noise_b)
        for i, each in enumerate(scores)
    ]


def _first(log_e: FloatArray, limit: float) -> int:
    """The index of the first prompt at which an e-value reaches the limit; the number of prompts if it never does."""
    reached = np.flatnonzero(log_e >= limit)
    return int(reached[0]) if len(reached) else len(log_e)
