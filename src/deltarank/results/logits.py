"""The divergence of one candidate on one text: means with intervals, percentiles, and the tokens in groups.

All divergences are in nats per token. The finetune is the reference P, a candidate is Q: `kld` is KL(P || Q), the
direction that llama.cpp prints; `kld_reverse` is KL(Q || P).
"""

from __future__ import annotations

from dataclasses import dataclass

from deltarank.results.codec import Count

USELESS_BOUND = 0.9
"""A bound on the blind score that is no lower excludes no score that people reach, and is not stated."""


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % interval, bootstrapped over documents (Efron 1979); None for fewer than two."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Divergence:
    """KL divergence over the scored tokens of one text, in nats per token; `low` and `high` bound the mean."""

    mean: float
    low: float | None
    high: float | None
    median: float
    p90: float
    p95: float
    p99: float
    p999: float
    max: float


@dataclass(frozen=True)
class SliceScore:
    """The mean KLD of tokens whose position, or probability of the reference's top token, is in [first, last)."""

    first: int | float
    last: int | float
    tokens: Count
    kld: float


@dataclass(frozen=True)
class Histogram:
    """Tokens by log10 of their KLD: counts[i] are in [edges[i], edges[i + 1]); the end bins hold what is beyond."""

    edges: tuple[float, ...]
    counts: tuple[Count, ...]


@dataclass(frozen=True)
class DocumentScore:
    """The number of scored tokens of a document, and their mean KLD."""

    name: str
    tokens: Count
    kld: float


@dataclass(frozen=True)
class BlindBound:
    """The best accuracy of any judge in a blind test with replies of this length: 1/2 + TV/2, with TV bounded by KL."""

    tokens: Count
    one_reply: float
    two_replies: float

    @property
    def is_informative(self) -> bool:
        """Whether it rules out a score that people reach."""
        return self.one_reply < USELESS_BOUND


@dataclass(frozen=True)
class Logits:
    """One candidate on one text.

    text             the name of the text
    tokens           scored tokens; `documents` likewise
    same_top_p       share of tokens at which both have the same most likely token
    rms_delta_p      root mean square of q(t) - p(t) for the token t of the text; `mean_delta_p` is its mean
    ppl              exp(mean negative log-likelihood) of the candidate; `reference_ppl` the finetune's
    log_ppl_ratio    mean of log p(t) - log q(t), paired token by token
    kept             1 - kld.mean / (the base's kld.mean on this text); None if the base has none or is the reference
    tokens_to_tell   ln 20 / kld.mean: tokens until an ideal judge is 20 to 1 sure; on the finetune's own answers only
    blind            bounds on the accuracy in a blind test; on the finetune's own answers only
    not_finite       tokens left out because a logit was NaN
    """

    text: str
    tokens: Count
    documents: Count
    kld: Divergence
    kld_reverse: Divergence
    same_top_p: Interval
    rms_delta_p: Interval
    mean_delta_p: float
    ppl: float
    reference_ppl: float
    log_ppl_ratio: Interval
    kept: Interval | None = None
    tokens_to_tell: float | None = None
    blind: tuple[BlindBound, ...] = ()
    by_document: tuple[DocumentScore, ...] = ()
    by_position: tuple[SliceScore, ...] = ()
    by_confidence: tuple[SliceScore, ...] = ()
    histogram: Histogram | None = None
    not_finite: Count = 0
