"""OutputsView -> the rows that its charts draw. Each row says in `tip` what it is, for who points at it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from deltarank.report.view.chart_rows import Row, spread
from deltarank.report.view.outputs_page import AttributionView, CandidateView, OutputsView, PartView
from deltarank.report.view.page import PageData
from deltarank.report.view.text import clean, rounded, short
from deltarank.results import CandidateKind, Histogram, Logits, SliceScore, count, figure, percent

Span = tuple[float, float]

MOST_BARS = 40


def views(page: PageData) -> list[OutputsView]:
    """The outputs of those runs that have any."""
    return [run.outputs for run in page.runs if run.outputs]


# ---- KLD against rank -------------------------------------------------------------------------------------------


def point_rows(outputs: OutputsView, text: int) -> list[Row]:
    """Candidates of a rank, by rank: `kind` is "rank" (a line) or what else has a rank (a point)."""
    rows = [
        {
            "kind": "rank" if each.kind is CandidateKind.RANK else "other",
            "name": each.name,
            "at": each.rank,
            "kld": rounded(logits.kld.mean),
            "low": rounded(logits.kld.low or logits.kld.mean),
            "high": rounded(logits.kld.high or logits.kld.mean),
            "tip": kld_tip(each.name, logits),
        }
        for each, logits in _scored(outputs, text)
        if each.rank is not None and logits.kld.mean > 0
    ]
    return sorted(rows, key=lambda row: (row["kind"], row["at"]))


def level_rows(outputs: OutputsView, text: int, span: Span) -> list[Row]:
    """What has no rank, as lines across: the base, the quantised finetunes, others. Names stand apart."""
    found = sorted(
        ((each, logits) for each, logits in _scored(outputs, text) if each.rank is None and logits.kld.mean > 0),
        key=lambda pair: -pair[1].kld.mean,
    )
    heights = [_height(max(logits.kld.mean, span[0]), span) for _, logits in found]
    return [
        {
            "name": each.name if logits.kld.mean >= span[0] else f"{each.name} \u2193",
            "kind": each.kind.value,
            "kld": rounded(max(logits.kld.mean, span[0])),
            "label_at": rounded(_at_height(place, span), 6),
            "tip": kld_tip(each.name, logits),
        }
        for (each, logits), place in zip(found, spread(heights, 0.055), strict=True)
    ]


def _scored(outputs: OutputsView, text: int) -> Iterator[tuple[CandidateView, Logits]]:
    """Controls are left out: they are near zero, which a logarithm does not reach. The table has them."""
    for each in outputs.candidates:
        logits = each.logits[text]
        if logits is not None and each.kind is not CandidateKind.CONTROL:
            yield each, logits


def _height(value: float, span: Span) -> float:
    low, high = (math.log(end) for end in span)
    return (math.log(value) - low) / (high - low)


def _at_height(height: float, span: Span) -> float:
    low, high = (math.log(end) for end in span)
    return math.exp(low + height * (high - low))


def kld_tip(name: str, logits: Logits) -> str:
    kld = logits.kld
    interval = f" (95 % interval {figure(kld.low)} to {figure(kld.high)})" if kld.low is not None else ""
    return f"{name}: {figure(kld.mean)} nats per token{interval}"


def span_of(values: Iterable[float | None]) -> Span:
    """Ends of a log axis that hold these values: 1, 2 or 5 times a power of ten."""
    known = [value for value in values if value is not None and value > 0]
    low, high = (min(known), max(known)) if known else (0.01, 1.0)
    ends = _step_down(low), _step_up(high)
    return ends if ends[0] < ends[1] else (ends[0] / 2, ends[1] * 2)


def _step_down(value: float) -> float:
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (5, 2, 1, 0.5) if step * power <= value)


def _step_up(value: float) -> float:
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= value)


BELOW = 30
"""How many times nearer than the nearest rank a line may lie and still make the axis longer."""


def kld_span(page: PageData) -> Span:
    """One for all runs and texts, so that they compare. Quantised far nearer than any rank, it is told by an arrow."""
    scored = [pair for outputs in views(page) for text in range(len(outputs.texts)) for pair in _scored(outputs, text)]
    ranks = [logits.kld.mean for each, logits in scored if each.kind is CandidateKind.RANK and logits.kld.mean > 0]
    floor = min(ranks, default=0.0) / BELOW
    ends = [(logits.kld.mean, logits.kld.low, logits.kld.high) for _, logits in scored if logits.kld.mean >= floor]
    return span_of(value for three in ends for value in three)


# ---- one candidate's tokens -------------------------------------------------------------------------------------


def token_rows(logits: Logits) -> list[Row]:
    """The histogram as bars on an axis of nats. `share` is of all scored tokens."""
    histogram = logits.histogram
    total = sum(histogram.counts) if histogram else 0
    if histogram is None or not total:
        return []
    ends = [10.0**edge for edge in histogram.edges]
    return [
        {
            "from": rounded(low),
            "to": rounded(high),
            "share": rounded(number / total),
            "tip": f"{percent(number / total)} of the tokens are {figure(low)} to {figure(high)} nats away",
        }
        for low, high, number in zip(ends, ends[1:], histogram.counts, strict=False)
    ]


def mark_rows(logits: Logits, span: Span) -> list[Row]:
    """Where the median, the mean and the 99.9 % lie on the histogram's axis."""
    named = (("median", logits.kld.median), ("mean", logits.kld.mean), ("99.9 %", logits.kld.p999))
    return [{"name": name, "at": rounded(value)} for name, value in named if span[0] <= value <= span[1]]


def slice_rows(slices: Sequence[SliceScore], *, position: bool) -> list[Row]:
    """A row a slice. `label` names it on an axis of equal steps."""
    total = sum(each.tokens for each in slices)
    return [
        {
            "first": each.first,
            "last": each.last,
            "label": _label(each, position),
            "share": percent(each.tokens / total if total else None),
            "kld": rounded(each.kld),
            "tip": f"{_where(each, position)}: {figure(each.kld)} nats per token over {count(each.tokens, 'token')}",
        }
        for each in slices
        if each.tokens and each.kld > 0
    ]


def _label(each: SliceScore, position: bool) -> str:
    if position:
        return f"{each.first:g}\u2013{each.last:g}"
    return f"{100 * each.first:g}\u2013{100 * each.last:g}"


def _where(each: SliceScore, position: bool) -> str:
    if position:
        return f"tokens {each.first:,.0f} to {each.last:,.0f} of a document"
    return f"where the finetune gives its first choice {100 * each.first:g} to {100 * each.last:g} %"


MOST_DOCUMENTS = 400


def document_rows(logits: Logits) -> list[Row]:
    """A row a document, nearest first; of very many an even choice, the farthest among them."""
    known = sorted((each for each in logits.by_document if each.kld > 0), key=lambda each: each.kld)
    step = max(1, math.ceil(len(known) / MOST_DOCUMENTS))
    return [
        {
            "number": number,
            "kld": rounded(each.kld, 3),
            "tip": f"{short(clean(each.name))}: {figure(each.kld)} nats per token over {count(each.tokens, 'token')}",
        }
        for number, each in list(enumerate(known, 1))[::-step][::-1]
    ]


def slice_labels(page: PageData, *, position: bool) -> list[str]:
    """The places of an axis of equal steps, for all runs."""
    ends = {
        (each.first, each.last): _label(each, position)
        for logits in all_logits(page)
        for each in (logits.by_position if position else logits.by_confidence)
    }
    return [label for _, label in sorted(ends.items())]


def all_logits(page: PageData) -> Iterator[Logits]:
    """Of all runs, candidates and texts, less the controls."""
    for outputs in views(page):
        for text in range(len(outputs.texts)):
            yield from (logits for _, logits in _scored(outputs, text))


def slice_span(shown: Sequence[Logits]) -> Span:
    """One for positions, confidences and documents of those that are shown together."""
    values: list[float] = []
    for each in shown:
        values += [part.kld for part in (*each.by_position, *each.by_confidence)]
        values += [document.kld for document in each.by_document]
    return span_of(values)


def token_span(shown: Sequence[Logits]) -> Span:
    """From the first to the last place of these histograms that anything lies in."""
    filled = [
        (low, high)
        for histogram in _histograms(shown)
        for low, high, number in zip(histogram.edges, histogram.edges[1:], histogram.counts, strict=False)
        if number
    ]
    if not filled:
        return (1e-6, 10.0)
    return 10.0 ** min(low for low, _ in filled), 10.0 ** max(high for _, high in filled)


def token_top(shown: Sequence[Logits]) -> float:
    """Above the highest bar of these histograms, with room for names."""
    return 1.2 * max((max(each.counts) / sum(each.counts) for each in _histograms(shown)), default=1.0)


def _histograms(shown: Sequence[Logits]) -> list[Histogram]:
    return [each.histogram for each in shown if each.histogram and sum(each.histogram.counts)]


# ---- attribution ------------------------------------------------------------------------------------------------


def part_rows(attribution: AttributionView) -> list[Row]:
    """A row a part, largest KLD first. The three largest carry their name onto the scatter."""
    return [
        {
            "name": _part_name(part),
            "named": place < 3,
            "bar": place < MOST_BARS,
            "layer": part.layer,
            "module": part.module,
            "kld": rounded(part.kld),
            "share_kld": rounded(part.share_kld),
            "share_lost": rounded(part.share_lost),
        }
        for place, part in enumerate(attribution.parts)
    ]


def _part_name(part: PartView) -> str:
    if part.layer is not None and part.module is not None:
        return f"{part.layer} {part.module}"
    return part.name


def part_top(page: PageData) -> tuple[float, float]:
    """The largest KLD of a part and the largest share, over all runs and ranks."""
    parts = [part for outputs in views(page) for each in outputs.attribution for part in each.parts]
    shares = [max(part.share_kld, part.share_lost) for part in parts]
    return max((part.kld for part in parts), default=0.0) or 1.0, max(shares, default=0.0) or 1.0
