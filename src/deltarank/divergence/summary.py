"""From numbers per token to what is said of a candidate on a text: means, tails, intervals, buckets, blind bounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deltarank.divergence.bootstrap import Sums, resample
from deltarank.divergence.token_stats import TokenStats
from deltarank.errors import JobError
from deltarank.results import BlindBound, Divergence, DocumentScore, Histogram, Interval, Logits, Slice

ODDS = 20.0
"""Odds at which an ideal judge is taken to have told two models apart."""

REPLY_LENGTHS = (50, 200, 1000)
CONFIDENCE_EDGES = (0.0, 0.25, 0.5, 0.75, 0.95, 1.0)
HISTOGRAM_EDGES = tuple(-8 + step / 4 for step in range(41))
FIRST_POSITION_EDGE = 16

_TOKENS, _KLD, _REVERSE, _SAME_TOP, _SQUARED_DELTA_P, _LOG_RATIO = range(6)
"""Columns of a document's sums."""


def logits_of(
    text: str,
    documents: Mapping[str, TokenStats],
    *,
    base: Mapping[str, TokenStats] | None = None,
    own: bool = False,
    seed: int = 0,
) -> Logits:
    """All that is said of one candidate on one text.

    Args:
        documents: the tokens of each document by its name. Those that are not finite are left out and counted.
        base: the same documents' tokens with the base in the candidate's place; `kept` is paired with it, document by
            document and token by token. None where there is no base, or the base is the reference.
        own: the text was sampled from the reference at temperature 1: only then do the KLDs of a text's tokens add up
            to that of the text, on which tokens to tell and blind bounds rest.
        seed: of the bootstrap. One seed for all candidates draws the same documents for each.

    Raises:
        JobError: no token can be counted.
    """
    counted = {name: stats.take(stats.is_finite) for name, stats in documents.items() if stats.is_finite.any()}
    left_out = sum(int((~stats.is_finite).sum()) for stats in documents.values())
    if not counted:
        raise JobError(
            f"no token of {text!r} can be counted: {left_out:,} of {left_out:,} have logits that are not finite.",
            cure="Use --dtype float32 (float16 overflows where bfloat16 does not), or check the checkpoint for NaN.",
            slug="outputs-not-finite",
        )
    tokens = TokenStats.joined(list(counted.values()))
    sums = resample(np.array([_sums(stats) for stats in counted.values()]), seed=seed)
    mean = sums.interval(_ratio(_KLD))
    return Logits(
        text=text,
        tokens=len(tokens),
        documents=len(counted),
        kld=_divergence(tokens.kld, mean),
        kld_reverse=_divergence(tokens.kld_reverse, sums.interval(_ratio(_REVERSE))),
        same_top_p=sums.interval(_ratio(_SAME_TOP)),
        rms_delta_p=sums.interval(lambda of: np.sqrt(_ratio(_SQUARED_DELTA_P)(of))),
        mean_delta_p=_mean(tokens.delta_p),
        ppl=_exp(_mean(tokens.nll)),
        reference_ppl=_exp(_mean(tokens.reference_nll)),
        log_ppl_ratio=sums.interval(_ratio(_LOG_RATIO)),
        kept=_kept(documents, base, seed) if base is not None else None,
        tokens_to_tell=tokens_to_tell(mean.value) if own else None,
        blind=tuple(blind_bound(mean.value, length) for length in REPLY_LENGTHS) if own else (),
        by_document=tuple(DocumentScore(name, len(x), _mean(x.kld)) for name, x in counted.items()),
        by_position=_slices(tokens.position, tokens.kld, _position_edges(tokens.position)),
        by_confidence=_slices(tokens.top_p, tokens.kld, CONFIDENCE_EDGES),
        histogram=_histogram(tokens.kld),
        not_finite=left_out,
    )


def tokens_to_tell(kld: float) -> float | None:
    """ln 20 / kld: how many sampled tokens bring an ideal judge, who knows both models, to odds of 20 to 1.

    The expected log of the likelihood ratio grows by the KLD with each token of the reference's own text (Wald 1945).
    None for a KLD of zero: no number of tokens is enough.
    """
    return math.log(ODDS) / kld if kld > 0 else None


def blind_bound(kld: float, tokens: int) -> BlindBound:
    """The most that any judge can score, on average, over replies of so many tokens, sampled at temperature 1.

    One reply, from either model with even chance: 1/2 + TV/2, where over n tokens KL = n kld (chain rule) and
    TV <= sqrt(KL / 2) (Pinsker) and TV <= sqrt(1 - exp(-KL)) (Bretagnolle and Huber 1979).

    Two replies, one of each in random order: the judge tells P x Q from Q x P. TV of the pair is at most
    1 - (1 - TV)^2, and at most sqrt(1 - exp(-2 KL)), for the affinities of the two replies multiply. Both hold with
    KL(P || Q) alone.
    """
    total = tokens * kld
    one = min(math.sqrt(total / 2), math.sqrt(-math.expm1(-total)))
    two = min(1 - (1 - one) ** 2, math.sqrt(-math.expm1(-2 * total)))
    return BlindBound(tokens, 0.5 + one / 2, 0.5 + two / 2)


def _sums(stats: TokenStats) -> list[float]:
    columns = (
        stats.kld,
        stats.kld_reverse,
        stats.same_top,
        stats.delta_p.astype(np.float64) ** 2,
        stats.nll.astype(np.float64) - stats.reference_nll,
    )
    return [float(len(stats)), *(float(each.sum(dtype=np.float64)) for each in columns)]


def _ratio(above: int, below: int = _TOKENS) -> Callable[[Sums], Sums]:
    """The ratio of one sum to another, over the last axis; NaN where the other is zero."""

    def ratio(sums: Sums) -> Sums:
        under = np.asarray(sums[..., below])
        found: Sums = np.divide(sums[..., above], under, out=np.full(under.shape, np.nan), where=under != 0)
        return found

    return ratio


def _kept(documents: Mapping[str, TokenStats], base: Mapping[str, TokenStats], seed: int) -> Interval | None:
    """1 - sum of the candidate's KLD / sum of the base's, over the tokens at which both are finite."""
    sums = []
    for name in (name for name in documents if name in base):
        both = documents[name].is_finite & base[name].is_finite
        if both.any():
            pair = (documents[name].kld[both], base[name].kld[both])
            sums.append([float(each.sum(dtype=np.float64)) for each in pair])
    if not math.fsum(row[1] for row in sums):
        return None
    return resample(np.array(sums), seed=seed).interval(lambda of: 1 - _ratio(0, 1)(of))


def _mean(values: NDArray[np.float32]) -> float:
    return float(values.mean(dtype=np.float64))


def _exp(nll: float) -> float:
    return math.exp(min(nll, 700.0))


def _divergence(values: NDArray[np.float32], mean: Interval) -> Divergence:
    at = np.quantile(values.astype(np.float64), [0.5, 0.9, 0.95, 0.99, 0.999, 1.0])
    return Divergence(mean.value, mean.low, mean.high, *(float(each) for each in at))


def _position_edges(positions: NDArray[np.int32]) -> tuple[float, ...]:
    """0, 16, 32, 64, ... until past the last position."""
    edges = [0.0, float(FIRST_POSITION_EDGE)]
    while edges[-1] <= positions.max():
        edges.append(2 * edges[-1])
    return tuple(edges)


def _slices(places: NDArray[Any], kld: NDArray[np.float32], edges: Sequence[float]) -> tuple[Slice, ...]:
    """The mean KLD of the tokens in each [edge, next edge), the last with its end; empty ones are left out."""
    which = np.clip(np.searchsorted(edges, places, side="right") - 1, 0, len(edges) - 2)
    return tuple(
        Slice(edges[i], edges[i + 1], int(chosen.sum()), _mean(kld[chosen]))
        for i in range(len(edges) - 1)
        if (chosen := which == i).any()
    )


def _histogram(kld: NDArray[np.float32]) -> Histogram:
    with np.errstate(divide="ignore"):
        logs = np.clip(np.log10(kld.astype(np.float64)), HISTOGRAM_EDGES[0], HISTOGRAM_EDGES[-1])
    counts, _ = np.histogram(logs, HISTOGRAM_EDGES)
    return Histogram(HISTOGRAM_EDGES, tuple(int(count) for count in counts))
