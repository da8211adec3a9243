"""The rows and the axes of the charts of outputs. `tooltip` says what a row is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from deltarank.report.view.attribution import AttributionView
from deltarank.report.view.candidates import CandidateView
from deltarank.report.view.chart_rows import Row, spread_out
from deltarank.report.view.modules import Module, arrange_modules
from deltarank.report.view.outputs import OutputsView
from deltarank.report.view.text import NEARLY_ALL, significant, unbroken
from deltarank.results import (
    CandidateKind,
    DocumentScore,
    Histogram,
    Logits,
    SliceScore,
    count,
    escape,
    figure,
    percent,
    shorten,
)

Span = tuple[float, float]
"""The ends of a logarithmic axis."""

MOST_DOCUMENTS = 400
MOST_BARS = 40
MOST_BELOW_RANKS = 30
"""A reference line this many times below the smallest KLD of a rank does not extend the axis."""

_LABEL_GAP = 0.055
"""The least distance of labels, as a share of the axis."""

_SHORT_NAME = 21
"""The most letters of a name on a narrow chart."""


# ---- KLD against rank -------------------------------------------------------------------------------------------


def point_rows(outputs: OutputsView, text: int) -> list[Row]:
    """Candidates that have a rank, by rank. `kind` is "rank" (drawn as a line) or "other" (drawn as points)."""
    rows = [
        {
            "kind": "rank" if candidate.kind is CandidateKind.RANK else "other",
            "name": candidate.name,
            "rank": candidate.rank,
            "kld": significant(logits.kld.mean),
            "low": significant(logits.kld.low or logits.kld.mean),
            "high": significant(logits.kld.high or logits.kld.mean),
            "tooltip": _kld_tooltip(candidate.name, logits),
        }
        for candidate, logits in _scored(outputs, text)
        if candidate.rank is not None and logits.kld.mean > 0
    ]
    return sorted(rows, key=lambda row: (row["kind"], row["rank"]))


def name_rows(outputs: OutputsView, text: int, span: Span) -> list[Row]:
    """All candidates but rank-r deltas, whose names stand at the right end without overlapping each other.

    Those without a rank are reference lines: the base, quantised finetunes, others. One below the axis is drawn at its
    end, and its name has an arrow.
    """
    named = sorted(
        (
            (candidate, logits)
            for candidate, logits in _scored(outputs, text)
            if (candidate.rank is None or candidate.kind is not CandidateKind.RANK) and logits.kld.mean > 0
        ),
        key=lambda pair: -pair[1].kld.mean,
    )
    low, high = (math.log(end) for end in span)
    shown = [max(logits.kld.mean, span[0]) for _, logits in named]
    heights = spread_out([(math.log(kld) - low) / (high - low) for kld in shown], _LABEL_GAP)
    return [
        {
            "rank": candidate.rank,
            "name": candidate.name + (arrow := "" if logits.kld.mean >= span[0] else " \u2193"),
            "short_name": shorten(candidate.name.replace(" alone at ", " at "), most=_SHORT_NAME) + arrow,
            "kld": significant(kld),
            "label_y": significant(math.exp(low + height * (high - low)), 6),
            "tooltip": _kld_tooltip(candidate.name, logits),
        }
        for (candidate, logits), kld, height in zip(named, shown, heights, strict=True)
    ]


def _scored(outputs: OutputsView, text: int) -> Iterator[tuple[CandidateView, Logits]]:
    """Candidates without the controls, whose KLD is near zero: a logarithmic axis does not reach it."""
    for candidate in outputs.candidates:
        logits = candidate.logits[text]
        if logits is not None and candidate.kind is not CandidateKind.CONTROL:
            yield candidate, logits


def _all_scored(views: Sequence[OutputsView]) -> list[tuple[CandidateView, Logits]]:
    return [pair for outputs in views for text in range(len(outputs.texts)) for pair in _scored(outputs, text)]


def _kld_tooltip(name: str, logits: Logits) -> str:
    kld = logits.kld
    interval = f" (95 % interval {figure(kld.low)} to {figure(kld.high)})" if kld.low is not None else ""
    return f"{name}: {figure(kld.mean)} nats per token{interval}"


def kld_span(views: Sequence[OutputsView]) -> Span:
    """One axis for all runs and texts, so that they compare."""
    scored = _all_scored(views)
    ranks = [logits.kld.mean for each, logits in scored if each.kind is CandidateKind.RANK and logits.kld.mean > 0]
    least = min(ranks, default=0.0) / MOST_BELOW_RANKS
    ends = [(logits.kld.mean, logits.kld.low, logits.kld.high) for _, logits in scored if logits.kld.mean >= least]
    return round_span(value for three in ends for value in three)


def round_span(values: Iterable[float | None]) -> Span:
    """Ends of a logarithmic axis that holds these values: 1, 2 or 5 times a power of ten."""
    positive = [value for value in values if value is not None and value > 0]
    low, high = (min(positive), max(positive)) if positive else (0.01, 1.0)
    low_power, high_power = (10.0 ** math.floor(math.log10(value)) for value in (low, high))
    first = next(step * low_power for step in (5, 2, 1, 0.5) if step * low_power <= low)
    last = next(step * high_power for step in (1, 2, 5, 10) if step * high_power >= high)
    return (first, last) if first < last else (first / 2, last * 2)


def round_ticks(span: Span, *, most: int = 9) -> list[float]:
    """1, 2, 5, 10, ... within the span; powers of ten alone where that would be too many."""
    powers = range(math.floor(math.log10(span[0])) - 1, math.ceil(math.log10(span[1])) + 1)
    for steps in ((1, 2, 5), (1,)):
        ticks = [float(f"{step}e{power}") for power in powers for step in steps]
        within = [value for value in ticks if span[0] * 0.999 <= value <= span[1] * 1.001]
        if len(within) <= most:
            break
    return within


# ---- the tokens of one candidate --------------------------------------------------------------------------------


def token_rows(logits: Logits) -> list[Row]:
    """The histogram as bars on an axis of nats. `share` is of all scored tokens."""
    rows = []
    for histogram in _histograms([logits]):
        ends, total = [10.0**edge for edge in histogram.edges], sum(histogram.counts)
        for low, high, number in zip(ends, ends[1:], histogram.counts, strict=False):
            share = number / total
            tooltip = f"{percent(share)} of the tokens have a KLD of {figure(low)} to {figure(high)} nats"
            rows.append(
                {"from": significant(low), "to": significant(high), "share": significant(share), "tooltip": tooltip}
            )
    return rows


def statistic_rows(logits: Logits, span: Span) -> list[Row]:
    """The median, the mean and the 99.9th percentile, as far as they lie on the histogram's axis."""
    named = (("median", logits.kld.median), ("mean", logits.kld.mean), ("99.9 %", logits.kld.p999))
    return [{"name": name, "value": significant(value)} for name, value in named if span[0] <= value <= span[1]]


def position_rows(logits: Logits) -> list[Row]:
    """The KLD by position in the document."""
    return _slice_rows(logits.by_position, "{0:g}–{1:g}", "tokens {0:,.0f} to {1:,.0f} of a document", scale=1)


def confidence_rows(logits: Logits) -> list[Row]:
    """The KLD by the probability that the finetune gives its most likely token."""
    tooltip = "where the finetune's top probability is {0:g} to {1:g} %"
    return _slice_rows(logits.by_confidence, "{0:g}–{1:g}", tooltip, scale=100)


def _slice_rows(slices: Sequence[SliceScore], label: str, tooltip: str, *, scale: float) -> list[Row]:
    total = sum(each.tokens for each in slices)
    return [
        {
            "label": label.format(scale * each.first, scale * each.last),
            "share": percent(each.tokens / total),
            "kld": significant(each.kld),
            "tooltip": _mean_tooltip(tooltip.format(scale * each.first, scale * each.last), each),
        }
        for each in slices
        if each.tokens and each.kld > 0
    ]


def slice_labels(views: Sequence[OutputsView], *, position: bool) -> list[str]:
    """The labels of an axis of slices, over all runs."""
    scale = 1 if position else 100
    ends = {
        (scale * each.first, scale * each.last)
        for _, logits in _all_scored(views)
        for each in (logits.by_position if position else logits.by_confidence)
    }
    return [f"{first:g}–{last:g}" for first, last in sorted(ends)]


def document_rows(logits: Logits) -> list[Row]:
    """A row for each document, smallest KLD first; of very many an even choice that includes the largest."""
    ordered = sorted((each for each in logits.by_document if each.kld > 0), key=lambda each: each.kld)
    step = max(1, math.ceil(len(ordered) / MOST_DOCUMENTS))
    return [
        {
            "number": number,
            "kld": significant(each.kld, 3),
            "tooltip": _mean_tooltip(shorten(escape(each.name)), each),
        }
        for number, each in list(enumerate(ordered, 1))[::-step][::-1]
    ]


def _mean_tooltip(name: str, tokens: SliceScore | DocumentScore) -> str:
    return f"{name}: {figure(tokens.kld)} nats per token over {count(tokens.tokens, 'token')}"


def token_axes(logits: Logits, base: Logits | None) -> dict[str, Any]:
    """The ends of the axes for a candidate and the base. With other candidates on them, both could be squeezed."""
    shown = [logits] if base is None else [logits, base]
    slices = [part.kld for each in shown for part in (*each.by_position, *each.by_confidence)]
    low, high = round_span([*slices, *(document.kld for each in shown for document in each.by_document)])
    first, last = token_span(shown)
    shares = (max(each.counts) / sum(each.counts) for each in _histograms(shown))
    top = 1.2 * max(shares, default=1.0)  # leaves room for the names of the statistics
    return {"low": low, "high": high, "ticks": round_ticks((low, high)), "first": first, "last": last, "top": top}


def token_span(shown: Sequence[Logits]) -> Span:
    """From the first to the last bar of these histograms that is not empty."""
    filled = [
        (low, high)
        for histogram in _histograms(shown)
        for low, high, number in zip(histogram.edges, histogram.edges[1:], histogram.counts, strict=False)
        if number
    ]
    if not filled:
        return (1e-6, 10.0)
    return 10.0 ** min(low for low, _ in filled), 10.0 ** max(high for _, high in filled)


def _histograms(shown: Sequence[Logits]) -> list[Histogram]:
    return [each.histogram for each in shown if each.histogram and sum(each.histogram.counts)]


def token_facts(logits: Logits) -> list[tuple[str, str]]:
    """(title, value) of what people ask first: how far, how often another token, how long until it shows."""
    facts = [
        ("nats per token (mean KLD)", figure(logits.kld.mean)),
        ("same most likely token (Same top p)", percent(logits.same_top_p.value)),
        ("error of a token's probability (RMS Δp)", percent(logits.rms_delta_p.value)),
    ]
    if logits.tokens_to_tell is not None:
        number = logits.tokens_to_tell
        facts.append(("an ideal judge needs", "1 token" if number < 1.5 else f"{figure(round(number))} tokens"))
    for bound in (
        each for each in logits.blind if each.is_informative
    ):  # a bound that is 1 to sixteen digits is still under 1
        one, pair = (percent(min(share, NEARLY_ALL)) for share in (bound.one_reply, bound.two_replies))
        facts.append((f"best blind score, {count(bound.tokens, 'token')}", f"{one} (pair: {pair})"))
    return [(title, unbroken(value)) for title, value in facts]


# ---- attribution ------------------------------------------------------------------------------------------------


def part_rows(attribution: AttributionView, modules: Sequence[Module]) -> list[Row]:
    """A row for each part, largest KLD first. The three largest have their names on the scatter plot."""
    by_name = {module.name: module for module in modules}
    return [
        {
            "name": part.name,
            "is_named": i < 3,
            "has_bar": i < MOST_BARS,
            "layer": part.layer,
            "module": module.label if (module := by_name.get(part.module or "")) else None,
            "short_module": module.short_label if module else None,
            "kld": significant(part.kld),
            "low": significant(part.low, 3),
            "high": significant(part.high, 3),
            "share_kld": significant(part.share_kld),
            "share_lost": significant(part.share_lost),
        }
        for i, part in enumerate(attribution.parts)
    ]


def part_axes(views: Sequence[OutputsView]) -> tuple[list[str], tuple[Module, ...]]:
    """The layers and modules of the map of parts, over all runs."""
    parts = [part for view in views for each in view.attribution if each.has_map for part in each.parts]
    layers = sorted({int(part.layer) for part in parts if part.layer is not None})
    modules = arrange_modules({part.module: 0.0 for part in parts if part.module is not None})
    return [str(layer) for layer in layers], modules


def largest_part(views: Sequence[OutputsView]) -> tuple[float, float]:
    """The largest KLD of a part and the largest share, over all runs and ranks."""
    parts = [part for view in views for each in view.attribution for part in each.parts]
    shares = [max(part.share_kld, part.share_lost) for part in parts]
    return max((part.kld for part in parts), default=0.0) or 1.0, max(shares, default=0.0) or 1.0
