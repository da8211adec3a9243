"""Which parts of the model the divergence comes from: each part alone replaced by its rank-r approximation."""

from __future__ import annotations

import math
from dataclasses import dataclass

from deltarank.report.view.text import label, unbroken
from deltarank.results import AttributionResult, Part, escape, figure

MOST_PARTS = 2000
"""How many parts the page has for each rank of a run; results.json has all."""


@dataclass(frozen=True)
class PartView:
    """A part of the model. The shares are of the sums over all parts; `low` and `high` bound the KLD."""

    name: str
    layer: str | None
    module: str | None
    kld: float
    low: float | None
    high: float | None
    share_kld: float
    share_lost: float


@dataclass(frozen=True)
class AttributionView:
    """The parts at one rank, largest KLD first. `has_map`: each part has a layer and a module."""

    rank: int
    parts: tuple[PartView, ...]
    sentence: str
    has_map: bool


def attribution_view(attribution: AttributionResult) -> AttributionView:
    """What the page shows of it."""
    kld = math.fsum(part.kld for part in attribution.parts)
    largest = sorted(attribution.parts, key=lambda part: -part.kld)[:MOST_PARTS]
    parts = tuple(_part(part, kld) for part in largest)
    return AttributionView(
        rank=attribution.rank,
        parts=parts,
        sentence=_sentence(attribution),
        has_map=bool(parts) and all(part.layer is not None and part.module is not None for part in parts),
    )


def _part(part: Part, kld: float) -> PartView:
    layer = None if part.layer is None else str(part.layer)
    module = None if part.module is None else label(part.module)
    return PartView(
        name=f"{layer} {module}" if layer is not None and module is not None else label(part.name),
        layer=layer,
        module=module,
        kld=part.kld,
        low=part.low,
        high=part.high,
        share_kld=part.kld / kld if kld > 0 else 0.0,
        share_lost=part.share_lost,
    )


def _sentence(attribution: AttributionResult) -> str:
    """What was replaced, whether the parts add up, and whether the loss in the weights predicts the KLD."""
    unit, rank = escape(attribution.unit), attribution.rank
    interval = _interval(attribution.together_low, attribution.together_high, "95 % interval ")
    sentences = [
        f"One {unit} at a time was replaced by its rank-{rank} approximation; the rest stayed the finetune's.",
        f"All of them together: {figure(attribution.together)} nats per token{interval}.",
    ]
    if attribution.additivity is not None:
        interval = _interval(attribution.additivity_low, attribution.additivity_high)
        sentences.append(f"The single KLDs add up to {figure(attribution.additivity)} times that{interval}.")
    if attribution.rank_correlation is not None:
        interval = _interval(attribution.rank_correlation_low, attribution.rank_correlation_high)
        sentences.append(
            "Rank correlation (Spearman) between the loss in the weights and the KLD: "
            f"{figure(attribution.rank_correlation)}{interval}, where 1 means the same order."
        )
    return unbroken(" ".join(sentences))


def _interval(low: float | None, high: float | None, words: str = "") -> str:
    return "" if low is None or high is None else f" ({words}{figure(low)} to {figure(high)})"
