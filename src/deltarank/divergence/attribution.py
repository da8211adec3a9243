"""Which parts of a model matter: the finetune's divergence from itself when one part alone is truncated to rank r."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from deltarank.divergence.arrays import FloatArray
from deltarank.divergence.bootstrap import BootstrapTotals, resample
from deltarank.divergence.token_stats import TokenStats
from deltarank.results import AttributionResult, Interval, Part

FEWEST_DOCUMENTS = 16
"""With fewer, the width of an interval is itself uncertain."""

_FEWEST_PARTS = 3
"""With fewer, a rank correlation says nothing."""


@dataclass(frozen=True)
class PartMeasurement:
    """One part of a model, truncated to rank r while everything else stays the finetune's.

    lost        ||D - D_r||^2 over the matrices of the part
    energy      ||D||^2 over them
    stats       per-token statistics of the resulting model, by document
    """

    name: str
    layer: int | None
    module: str | None
    lost: float
    energy: float
    stats: Mapping[str, TokenStats]


def summarise_attribution(
    rank: int,
    unit: str,
    text: str,
    measurements: Sequence[PartMeasurement],
    all_parts: Mapping[str, TokenStats],
    *,
    seed: int = 0,
) -> AttributionResult:
    """The parts by their mean KLD, largest first, and Spearman's rank correlation (1904) of weight loss and KLD.

    Every figure has a bootstrap interval over documents. All parts get the same resamples of documents, so what they
    have in common cancels in the ratio of their sum to the whole, and in their order.

    Args:
        all_parts: statistics, by document, of the model with all parts truncated at once.
        seed: of the bootstrap.
    """
    bootstrap = resample(_sums([all_parts, *(each.stats for each in measurements)]), seed=seed)
    together = bootstrap.interval(lambda sums: _mean_klds(sums)[..., 0])
    additivity = _additivity(bootstrap) if together.value > 0 else None
    correlation = _rank_correlation(bootstrap, [each.lost for each in measurements])
    total_lost = math.fsum(each.lost for each in measurements)
    parts = [_summarise_part(each, _part_kld(bootstrap, i), total_lost) for i, each in enumerate(measurements)]
    return AttributionResult(
        rank=rank,
        unit=unit,
        text=text,
        parts=tuple(sorted(parts, key=lambda part: -part.kld)),
        together=together.value,
        additivity=additivity.value if additivity else None,
        rank_correlation=correlation.value if correlation else None,
        together_low=together.low,
        together_high=together.high,
        additivity_low=additivity.low if additivity else None,
        additivity_high=additivity.high if additivity else None,
        rank_correlation_low=correlation.low if correlation else None,
        rank_correlation_high=correlation.high if correlation else None,
    )


def documents_needed(stats: Mapping[str, TokenStats], *, relative_width: float, seed: int = 0) -> int | None:
    """How many of these documents give the mean KLD a 95 % interval of about so much of it to either side.

    The half width falls with the root of the number of documents. At least FEWEST_DOCUMENTS; None if the KLD is zero or
    has no interval.

    Args:
        stats: of one model, by document.
        seed: of the bootstrap.
    """
    kld = resample(_sums([stats]), seed=seed).interval(lambda sums: _mean_klds(sums)[..., 0])
    if kld.low is None or kld.high is None or kld.value <= 0:
        return None
    half_width = (kld.high - kld.low) / 2 / kld.value
    return max(math.ceil(len(stats) * (half_width / relative_width) ** 2), FEWEST_DOCUMENTS)


def _summarise_part(measurement: PartMeasurement, kld: Interval, total_lost: float) -> Part:
    lost, energy = measurement.lost, measurement.energy
    return Part(
        name=measurement.name,
        layer=measurement.layer,
        module=measurement.module,
        kld=kld.value,
        lost=lost,
        relative_error=math.sqrt(min(lost / energy, 1.0)) if energy > 0 else 0.0,
        share_lost=lost / total_lost if total_lost > 0 else 0.0,
        low=kld.low,
        high=kld.high,
    )


def _sums(models: Sequence[Mapping[str, TokenStats]]) -> FloatArray:
    """(documents, 2 * models): the number of finite tokens of each document and the sum of their KLD, by model."""
    finite = [[stats[name].take(stats[name].is_finite).kld for stats in models] for name in models[0]]
    return np.array([[x for kld in row for x in (len(kld), kld.sum(dtype=np.float64))] for row in finite], np.float64)


def _mean_klds(sums: FloatArray) -> FloatArray:
    """(..., 2 * models) to (..., models): the mean over all finite tokens; 0 if there are none."""
    tokens, klds = sums[..., ::2], sums[..., 1::2]
    means: FloatArray = np.divide(klds, tokens, out=np.zeros_like(klds), where=tokens != 0)
    return means


def _part_kld(bootstrap: BootstrapTotals, part: int) -> Interval:
    return bootstrap.interval(lambda sums: _mean_klds(sums)[..., 1 + part])


def _additivity(bootstrap: BootstrapTotals) -> Interval:
    """The sum of the parts' KLD / that of all parts at once."""

    def statistic(sums: FloatArray) -> FloatArray:
        klds = _mean_klds(sums)
        together = klds[..., 0]
        quotient: FloatArray = np.divide(
            klds[..., 1:].sum(-1), together, out=np.full(together.shape, np.nan), where=together != 0
        )
        return quotient

    return bootstrap.interval(statistic)


def _rank_correlation(bootstrap: BootstrapTotals, lost: Sequence[float]) -> Interval | None:
    """None for fewer than three parts, or where weight loss or KLD is the same for all of them."""
    if len(lost) < _FEWEST_PARTS or len(set(lost)) == 1 or len(set(_mean_klds(bootstrap.totals)[1:])) == 1:
        return None
    return bootstrap.interval(_spearman(np.array(lost)))


def _spearman(values: FloatArray) -> Callable[[FloatArray], FloatArray]:
    """Pearson's correlation of the ranks of `values` with the ranks of the parts' KLD; NaN where all are equal."""

    def statistic(sums: FloatArray) -> FloatArray:
        x, y = (ranks - ranks.mean(-1, keepdims=True) for ranks in (rankdata(values), _kld_ranks(sums)))
        norms = np.linalg.norm(x) * np.linalg.norm(y, axis=-1)
        quotient: FloatArray = np.divide(y @ x, norms, out=np.full(norms.shape, np.nan), where=norms != 0)
        return quotient

    return statistic


def _kld_ranks(sums: FloatArray) -> FloatArray:
    ranks: FloatArray = rankdata(_mean_klds(sums)[..., 1:], axis=-1)
    return ranks
