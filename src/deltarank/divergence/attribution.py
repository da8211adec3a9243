"""Which parts matter: what the finetune loses when one of them alone is brought to rank r."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.stats import spearmanr

from deltarank.divergence.token_stats import TokenStats
from deltarank.results import AttributionResult, Part

_FEWEST = 3


@dataclass(frozen=True)
class PartMeasurement:
    """One part, what its weights lose at rank r, and what the model then says.

    lost, energy     ||D - D_r||^2 and ||D||^2 of its matrices
    """

    name: str
    layer: int | None
    module: str | None
    lost: float
    energy: float
    stats: Mapping[str, TokenStats]


def attribution_of(
    rank: int, unit: str, text: str, swaps: Sequence[PartMeasurement], together: Mapping[str, TokenStats]
) -> AttributionResult:
    """The parts by their KLD, the largest first; Spearman's rank correlation (1904) of weight loss and KLD."""
    whole = math.fsum(swap.lost for swap in swaps)
    parts = sorted((_part(swap, whole) for swap in swaps), key=lambda part: -part.kld)
    all_at_once = mean_kld(together)
    total = math.fsum(part.kld for part in parts)
    return AttributionResult(
        rank=rank,
        unit=unit,
        text=text,
        parts=tuple(parts),
        together=all_at_once,
        additivity=total / all_at_once if all_at_once > 0 else None,
        rank_correlation=_spearman(parts),
    )


def _part(swap: PartMeasurement, whole: float) -> Part:
    return Part(
        name=swap.name,
        layer=swap.layer,
        module=swap.module,
        kld=mean_kld(swap.stats),
        lost=swap.lost,
        relative_error=math.sqrt(min(swap.lost / swap.energy, 1.0)) if swap.energy > 0 else 0.0,
        share_lost=swap.lost / whole if whole > 0 else 0.0,
    )


def mean_kld(stats: Mapping[str, TokenStats]) -> float:
    """Over all tokens that can be counted, in float64; 0 if there are none."""
    kept = [each.take(each.is_finite).kld for each in stats.values()]
    tokens = sum(map(len, kept))
    return math.fsum(float(each.sum(dtype="float64")) for each in kept) / tokens if tokens else 0.0


def _spearman(parts: Sequence[Part]) -> float | None:
    """None for fewer than three parts, or where one of the two is the same everywhere."""
    lost, kld = [part.lost for part in parts], [part.kld for part in parts]
    if len(parts) < _FEWEST or len(set(lost)) == 1 or len(set(kld)) == 1:
        return None
    return float(spearmanr(lost, kld).statistic)
