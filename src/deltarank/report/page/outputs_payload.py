"""The plain numbers of outputs that the page's script draws from: charts once, rows by run, text and candidate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deltarank.report.charts.outputs import (
    documents,
    kld_by_rank,
    part_bars,
    part_map,
    part_scatter,
    slices,
    ticks,
    tokens,
)
from deltarank.report.charts.vega import Spec
from deltarank.report.view.chart_rows import columns
from deltarank.report.view.modules import Module, arrange
from deltarank.report.view.outputs_chart_rows import (
    MOST_BARS,
    document_rows,
    kld_span,
    level_rows,
    mark_rows,
    part_rows,
    part_top,
    point_rows,
    slice_labels,
    slice_rows,
    slice_span,
    token_rows,
    token_span,
    token_top,
    views,
)
from deltarank.report.view.outputs_page import AttributionView, OutputsView
from deltarank.report.view.page import PageData, RunView
from deltarank.report.view.text import NEARLY_ALL, unbroken
from deltarank.results import Logits, count, figure, percent

STEPS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Nats at which the colour of a token changes."""


def outputs_payload(page: PageData) -> dict[str, Any] | None:
    """None where no run has outputs: the page is then as if there were none to be had."""
    if not page.spoken:
        return None
    return {
        "steps": STEPS,
        "charts": {name: {"spec": chart, "colours": []} for name, chart in outputs_charts(page).items()},
        "runs": [_run(page, run) for run in page.runs],
    }


def outputs_charts(page: PageData) -> dict[str, Spec]:
    """Each chart's definition by its name on the page."""
    positions, sureness = (slice_labels(page, position=position) for position in (True, False))
    layers, modules = part_axes(page)
    kld, share = part_top(page)
    made = {
        "kld": kld_by_rank(page, kld_span(page)),
        "tokens": tokens(page),
        "position": slices(page, "position", positions, title="token of the document", shares=False),
        "confidence": slices(page, "confidence", sureness, title="the finetune's first choice, in %", shares=True),
        "documents": documents(page),
    }
    if not any(outputs.attribution for outputs in views(page)):
        return made
    bars = max(len(each.parts) for outputs in views(page) for each in outputs.attribution)
    made |= {"bars": part_bars(page, min(bars, MOST_BARS)), "scatter": part_scatter(page, share)}
    for name, tall in (("parts", False), ("parts_tall", True)):
        made[name] = part_map(page, layers, modules, kld, tall=tall)
    return made


def part_axes(page: PageData) -> tuple[list[str], tuple[Module, ...]]:
    """Layers and modules of the attribution's map, over all runs."""
    parts = [part for outputs in views(page) for each in outputs.attribution for part in each.parts if each.mapped]
    layers = sorted({int(part.layer) for part in parts if part.layer is not None})
    return [str(layer) for layer in layers], arrange({part.module: 0.0 for part in parts if part.module is not None})


def _run(page: PageData, run: RunView) -> dict[str, Any] | None:
    outputs = run.outputs
    if outputs is None:
        return None
    return {
        "texts": [text.name for text in outputs.texts],
        "start": outputs.start,
        "base": outputs.base,
        "candidates": [each.name for each in outputs.candidates],
        "dial": [[each.candidate, each.exact] for each in outputs.dial],
        "lines": outputs.lines,
        "by_text": [_by_text(page, outputs, text) for text in range(len(outputs.texts))],
        "excerpts": [
            {"text": each.text, "document": each.document, "pieces": each.pieces, "kld": each.kld, "cut": each.cut}
            for each in outputs.excerpts
        ],
        "samples": [
            {
                "prompt": each.prompt,
                "category": each.category,
                "answer": "".join(each.answer),
                "others": {
                    i: ["".join(other.words), other.spans(each.answer), other.alike, other.same(each.answer)]
                    for i, other in each.others.items()
                },
            }
            for each in outputs.samples
        ],
        "attribution": [_attribution(page, each) for each in outputs.attribution],
    }


def _by_text(page: PageData, outputs: OutputsView, text: int) -> dict[str, Any]:
    return {
        "points": columns(point_rows(outputs, text)),
        "levels": columns(level_rows(outputs, text, kld_span(page))),
        "candidates": [_candidate(outputs, text, each.logits[text]) for each in outputs.candidates],
    }


def _candidate(outputs: OutputsView, text: int, logits: Logits | None) -> dict[str, Any] | None:
    if logits is None:
        return None
    base = None if outputs.base is None else outputs.candidates[outputs.base].logits[text]
    shown = [logits] if base is None else [logits, base]
    return {
        "tokens": columns(token_rows(logits)),
        "marks": columns(mark_rows(logits, token_span(shown))),
        "position": columns(slice_rows(logits.by_position, position=True)),
        "confidence": columns(slice_rows(logits.by_confidence, position=False)),
        "documents": columns(document_rows(logits)),
        "axis": _axis(shown),
        "facts": _facts(logits),
    }


def _axis(shown: Sequence[Logits]) -> dict[str, Any]:
    """Ends of the axes for what is shown and the base: a candidate far nearer would press both to the side."""
    low, high = slice_span(shown)
    first, last = token_span(shown)
    return {
        "low": low,
        "high": high,
        "ticks": ticks((low, high)),
        "first": first,
        "last": last,
        "top": token_top(shown),
    }


def _facts(logits: Logits) -> list[tuple[str, str]]:
    """What people ask first: how far, how often another word, how long until it shows."""
    facts = [
        ("nats per token (mean KLD)", figure(logits.kld.mean)),
        ("same token first (Same top p)", percent(logits.same_top_p.value)),
        ("a token's probability off by (RMS Δp)", percent(logits.rms_delta_p.value)),
    ]
    if logits.tokens_to_tell is not None:
        facts.append(("an ideal judge needs", _tokens(logits.tokens_to_tell)))
    facts += [
        (
            f"best blind score, {count(each.tokens, 'token')}",
            f"{_bound(each.one_reply)} (pair: {_bound(each.two_replies)})",
        )
        for each in logits.blind
    ]
    return [(title, unbroken(value)) for title, value in facts]


def _tokens(number: float) -> str:
    """In three digits."""
    return "1 token" if number < 1.5 else f"{figure(round(number))} tokens"


def _bound(share: float) -> str:
    """A bound that is 1 to sixteen digits is still under 1."""
    return percent(min(share, NEARLY_ALL))


def _attribution(page: PageData, attribution: AttributionView) -> dict[str, Any]:
    named = {module.name: module for module in part_axes(page)[1]}
    rows = []
    for row in part_rows(attribution):
        module = named.get(row["module"])
        rows.append({**row, "label": module.label if module else None, "short": module.short if module else None})
    return {
        "rank": attribution.rank,
        "mapped": attribution.mapped,
        "sentence": attribution.sentence,
        "parts": columns(rows),
    }
