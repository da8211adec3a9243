"""Per-token statistics summarised over a text: means, percentiles, intervals, histograms, bounds on a blind test."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from deltarank.divergence.arrays import FloatArray
from deltarank.divergence.bootstrap import resample
from deltarank.divergence.token_stats import TokenStats
from deltarank.errors import JobError
from deltarank.results import BlindBound, Divergence, DocumentScore, Histogram, Interval, Logits, SliceScore

ODDS = 20.0
"""Likelihood ratio at which an ideal judge counts as having told two models apart."""

REPLY_LENGTHS = (50, 200, 1000)
CONFIDENCE_EDGES = (0.0, 0.25, 0.5, 0.75, 0.95, 1.0)
HISTOGRAM_EDGES = tuple(-8 + step / 4 for step in range(41))
FIRST_POSITION_EDGE = 16

_TOKENS, _KLD, _REVERSE, _SAME_TOP, _SQUARED_DELTA_P, _LOG_RATIO = range(6)
"""Columns of a document's sums."""


def summarise_logits(
    text: str,
    documents: Mapping[str, TokenStats],
    *,
    base: Mapping[str, TokenStats | DocumentScore] | None = None,
    sampled_from_reference: bool = False,
    seed: int = 0,
) -> Logits:
    """The statistics of one candidate on one text.

    Args:
        documents: the tokens of each document, by its name. Tokens that are not finite are left out and counted.
        base: the same documents with the base in the candidate's place. `kept` compares the two on the same documents
            and tokens. Of a document of which only the base's mean is known, the number of tokens has to be the same,
            or it is left out. None where there is no base.
        sampled_from_reference: whether the reference wrote the text, sampled at temperature 1. Only then do the KLDs of
            its tokens add up to the KLD of the text, which `tokens_to_tell` and `blind` require.
        seed: of the bootstrap. Candidates with the same seed get the same resamples of documents.

    Raises:
        JobError: (slug "outputs-not-finite") no token is finite.
    """
    finite = {name: stats.take(stats.is_finite) for name, stats in documents.items() if stats.is_finite.any()}
    not_finite = sum(int((~stats.is_finite).sum()) for stats in documents.values())
    if not finite:
        raise JobError(
            f"{text!r} cannot be scored: all {not_finite:,} tokens have a logit that is NaN or infinite.",
            cure="Use --dtype float32 (float16 overflows where bfloat16 does not), or check the checkpoint for NaN.",
            slug="outputs-not-finite",
        )
    tokens = TokenStats.concatenate(list(finite.values()))
    bootstrap = resample(np.array([_sums(stats) for stats in finite.values()]), seed=seed)
    mean = bootstrap.interval(_ratio(_KLD))
    return Logits(
        text=text,
        tokens=len(tokens),
        documents=len(finite),
        kld=_divergence(tokens.kld, mean),
        kld_reverse=_divergence(tokens.kld_reverse, bootstrap.interval(_ratio(_REVERSE))),
        same_top_p=bootstrap.interval(_ratio(_SAME_TOP)),
        rms_delta_p=bootstrap.interval(lambda sums: np.sqrt(_ratio(_SQUARED_DELTA_P)(sums))),
        mean_delta_p=_mean(tokens.delta_p),
        ppl=_perplexity(_mean(tokens.nll)),
        reference_ppl=_perplexity(_mean(tokens.reference_nll)),
        log_ppl_ratio=bootstrap.interval(_ratio(_LOG_RATIO)),
        kept=_behaviour_kept(documents, base, seed) if base is not None else None,
        tokens_to_tell=tokens_to_tell(mean.value) if sampled_from_reference else None,
        blind=tuple(blind_bound(mean.value, length) for length in REPLY_LENGTHS) if sampled_from_reference else (),
        by_document=tuple(DocumentScore(name, len(x), _mean(x.kld)) for name, x in finite.items()),
        by_position=_mean_klds(tokens.position, tokens.kld, _position_edges(tokens.position)),
        by_confidence=_mean_klds(tokens.top_p, tokens.kld, CONFIDENCE_EDGES),
        histogram=_histogram(tokens.kld),
        not_finite=not_finite,
    )


def tokens_to_tell(kld: float) -> float | None:
    """ln 20 / kld: the sampled tokens after which an ideal judge, who knows both models, reaches odds of 20 to 1.

    Each token that the reference samples adds the KLD to the expected log-likelihood ratio (Wald 1945). None for a KLD
    of zero, where no number of tokens is enough.
    """
    return math.log(ODDS) / kld if kld > 0 else None


def blind_bound(kld: float, tokens: int) -> BlindBound:
    """Upper bounds on any judge's expected accuracy in a blind test with replies of so many tokens, at temperature 1.

    One reply, from either model with equal probability: at most 1/2 + TV/2, where TV is the total variation distance.
    Over n tokens KL = n kld (chain rule), TV <= sqrt(KL / 2) (Pinsker) and TV <= sqrt(1 - exp(-KL)) (Bretagnolle and
    Huber 1979).

    Two replies, one of each model in random order: the judge distinguishes P x Q from Q x P. Their TV is at most
    1 - (1 - TV)^2, and at most sqrt(1 - exp(-2 KL)), because the affinities of the two replies multiply. Both bounds
    need KL(P || Q) only.
    """
    total = tokens * kld
    one = min(math.sqrt(total / 2), math.sqrt(-math.expm1(-total)))
    two = min(1 - (1 - one) ** 2, math.sqrt(-math.expm1(-2 * total)))
    return BlindBound(tokens, 0.5 + one / 2, 0.5 + two / 2)


def abx_bound(bound: BlindBound) -> float:
    """An upper bound on any judge's expected accuracy at "X is A or B: which?", with three replies of this length.

    A and B are one reply of each model in random order, X is another reply of one of them. The two hypotheses are
    (P x Q x P + Q x P x Q) / 2 and (P x Q x Q + Q x P x P) / 2. Their difference is (P x Q - Q x P) x (P - Q) / 2, so
    their total variation is the product of those of the pair and of the single reply: one has to recognise both.
    """
    return 0.5 + (2 * bound.one_reply - 1) * (2 * bound.two_replies - 1) / 2


def _sums(stats: TokenStats) -> list[float]:
    """A document's sums, in the order of the column constants."""
    columns = (
        stats.kld,
        stats.kld_reverse,
        stats.same_top,
        stats.delta_p.astype(np.float64) ** 2,
        stats.nll.astype(np.float64) - stats.reference_nll,
    )
    return [float(len(stats)), *(float(each.sum(dtype=np.float64)) for each in columns)]


def _ratio(numerator: int, denominator: int = _TOKENS) -> Callable[[FloatArray], FloatArray]:
    """The ratio of two columns of sums, (..., sums) to (...); NaN where the denominator is zero."""

    def ratio(sums: FloatArray) -> FloatArray:
        below = np.asarray(sums[..., denominator])
        quotient: FloatArray = np.divide(
            sums[..., numerator], below, out=np.full(below.shape, np.nan), where=below != 0
        )
        return quotient

    return ratio


def _behaviour_kept(
    documents: Mapping[str, TokenStats], base: Mapping[str, TokenStats | DocumentScore], seed: int
) -> Interval | None:
    """1 - KLD of the candidate / KLD of the base, summed over the tokens at which both are finite."""
    pairs = [_kld_sums(documents[name], base[name]) for name in documents if name in base]
    sums = [pair for pair in pairs if pair is not None]
    if not math.fsum(row[1] for row in sums):
        return None
    return resample(np.array(sums), seed=seed).interval(lambda pairs: 1 - _ratio(0, 1)(pairs))


def _kld_sums(candidate: TokenStats, base: TokenStats | DocumentScore) -> tuple[float, float] | None:
    """Of one document; None if no token is finite in both."""
    if isinstance(base, DocumentScore):
        own = candidate.kld[candidate.is_finite]
        return (_sum(own), base.tokens * base.kld) if len(own) == base.tokens else None
    both = candidate.is_finite & base.is_finite
    return (_sum(candidate.kld[both]), _sum(base.kld[both])) if both.any() else None


def _sum(values: NDArray[np.float32]) -> float:
    return float(values.sum(dtype=np.float64))


def _mean(values: NDArray[np.float32]) -> float:
    return float(values.mean(dtype=np.float64))


def _perplexity(nll: float) -> float:
    """exp of a mean negative log-likelihood, kept from overflowing."""
    return math.exp(min(nll, 700.0))


def _divergence(values: NDArray[np.float32], mean: Interval) -> Divergence:
    quantiles = np.quantile(values.astype(np.float64), [0.5, 0.9, 0.95, 0.99, 0.999, 1.0])
    return Divergence(mean.value, mean.low, mean.high, *(float(each) for each in quantiles))


def _position_edges(positions: NDArray[np.int32]) -> tuple[float, ...]:
    """0, 16, 32, 64, ... up to the first that is beyond every position."""
    edges = [0.0, float(FIRST_POSITION_EDGE)]
    while edges[-1] <= positions.max():
        edges.append(2 * edges[-1])
    return tuple(edges)


def _mean_klds(
    values: NDArray[np.int32] | NDArray[np.float32], kld: NDArray[np.float32], edges: Sequence[float]
) -> tuple[SliceScore, ...]:
    """The mean KLD of the tokens whose value is in [edge, next edge); the last bin includes its end. No empty bins."""
    bins = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
    return tuple(
        SliceScore(edges[i], edges[i + 1], int(members.sum()), _mean(kld[members]))
        for i in range(len(edges) - 1)
        if (members := bins == i).any()
    )


def _histogram(kld: NDArray[np.float32]) -> Histogram:
    """Of log10 KLD; what lies outside the edges is counted in the first or last bin."""
    with np.errstate(divide="ignore"):
        logs = np.clip(np.log10(kld.astype(np.float64)), HISTOGRAM_EDGES[0], HISTOGRAM_EDGES[-1])
    counts, _ = np.histogram(logs, HISTOGRAM_EDGES)
    return Histogram(HISTOGRAM_EDGES, tuple(int(count) for count in counts))
