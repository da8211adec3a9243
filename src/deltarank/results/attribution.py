"""Which parts of a model matter for its outputs, in plain numbers."""

from __future__ import annotations

from dataclasses import dataclass

from deltarank.results.codec import Count, Rank


@dataclass(frozen=True)
class Part:
    """The finetune with the delta of one part alone reduced to rank r.

    name             a module ("mlp.down_proj"), a layer ("layer 3") or a matrix
    kld              mean nats per token
    lost             ||D - D_r||^2 of the part; `relative_error` its root over ||D||; `share_lost` its share of the
                     sum over all parts
    low, high        bounds of `kld`, a 95 % interval over documents; None for one document
    """

    name: str
    layer: Count | None
    module: str | None
    kld: float
    lost: float
    relative_error: float
    share_lost: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class AttributionResult:
    """Which parts matter at one rank, and whether their loss in the weights predicts it.

    together           the KLD with all parts at rank r
    additivity         sum of the parts' KLD / `together`
    rank_correlation   Spearman's, of `lost` and `kld` over the parts; None for fewer than three parts
    _low, _high        bounds of the three, 95 % intervals over documents; None for one document
    """

    rank: Rank
    unit: str
    text: str
    parts: tuple[Part, ...]
    together: float
    additivity: float | None
    rank_correlation: float | None
    together_low: float | None = None
    together_high: float | None = None
    additivity_low: float | None = None
    additivity_high: float | None = None
    rank_correlation_low: float | None = None
    rank_correlation_high: float | None = None
