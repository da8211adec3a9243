"""Which parts of a model matter: the finetune's divergence from itself when one part alone is truncated to rank r."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.stats import spearmanr

from deltarank.divergence.token_stats import TokenStats
from deltarank.results import AttributionResult, Part

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
) -> AttributionResult:
    """The parts by their mean KLD, largest first, and Spearman's rank correlation (1904) of weight loss and KLD.

    Args:
        all_parts: statistics, by document, of the model with all parts truncated at once.
    """
    total_lost = math.fsum(each.lost for each in measurements)
    parts = sorted((_summarise_part(each, total_lost) for each in measurements), key=lambda part: -part.kld)
    together = _mean_kld(all_parts)
    total_kld = math.fsum(part.kld for part in parts)
    return AttributionResult(
        rank=rank,
        unit=unit,
        text=text,
        parts=tuple(parts),
        together=together,
        additivity=total_kld / together if together > 0 else None,
        rank_correlation=_rank_correlation(parts),
    )


def _summarise_part(measurement: PartMeasurement, total_lost: float) -> Part:
    lost, energy = measurement.lost, measurement.energy
    return Part(
        name=measurement.name,
        layer=measurement.layer,
        module=measurement.module,
        kld=_mean_kld(measurement.stats),
        lost=lost,
        relative_error=math.sqrt(min(lost / energy, 1.0)) if energy > 0 else 0.0,
        share_lost=lost / total_lost if total_lost > 0 else 0.0,
    )


def _mean_kld(stats: Mapping[str, TokenStats]) -> float:
    """Over all finite tokens, summed in float64; 0 if there are none."""
    finite = [each.take(each.is_finite).kld for each in stats.values()]
    tokens = sum(map(len, finite))
    return math.fsum(float(each.sum(dtype="float64")) for each in finite) / tokens if tokens else 0.0


def _rank_correlation(parts: Sequence[Part]) -> float | None:
    """None for fewer than three parts, or where weight loss or KLD is the same for all of them."""
    lost, kld = [part.lost for part in parts], [part.kld for part in parts]
    if len(parts) < _FEWEST_PARTS or len(set(lost)) == 1 or len(set(kld)) == 1:
        return None
    return float(spearmanr(lost, kld).statistic)
