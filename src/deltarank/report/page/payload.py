"""The data of the page's script: plain numbers, the definitions of the charts, and their safe form in the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from deltarank.report.charts.matrix import loss_chart, spectrum_chart
from deltarank.report.charts.outputs import (
    kld_by_document,
    kld_by_rank,
    kld_by_slice,
    part_bars,
    part_map,
    part_scatter,
    token_histogram,
)
from deltarank.report.charts.theme import config, modules_with_style, palette, run_styles
from deltarank.report.charts.vega import Spec
from deltarank.report.charts.weights import cosine_by_layer, heat_map, loss_by_rank, runs_by_rank
from deltarank.report.view.chart_rows import as_columns, cell_rows, cosine_axis_end, line_end_rows, rank_rows, run_rows
from deltarank.report.view.divergence_rows import (
    MOST_BARS,
    confidence_rows,
    document_rows,
    kld_span,
    largest_part,
    name_rows,
    part_axes,
    part_rows,
    point_rows,
    position_rows,
    slice_labels,
    statistic_rows,
    token_axes,
    token_facts,
    token_rows,
)
from deltarank.report.view.modules import Module, ModuleGroup
from deltarank.report.view.outputs import OutputsView
from deltarank.report.view.page import MatrixRow, PageData, RunView
from deltarank.report.view.samples import SampleView
from deltarank.results import Logits

LABEL_GAP = 0.05
"""The least distance of names at the ends of lines, as a share of the chart's height."""

_LEAST_REPEATED = 4
"""How often the values of a column occur on average, so that it is worth packing."""

TOKEN_STEPS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Nats at which the colour of a token changes."""


def payload(page: PageData) -> dict[str, Any]:
    """The data of the script. Rows of charts and tables are columns: each name once, with a list of its values."""
    rows_of_runs = run_rows(page) if len(page.runs) > 1 else []
    return {
        "ranks": page.ranks,
        "shows_one_run": page.shows_one_run,
        "default_rank_index": page.default_index,
        "headlines": [[[phrase.text, phrase.is_name] for phrase in headline] for headline in page.headlines],
        "figures": page.figures,
        "modules": [module.label for module in page.modules],
        "short_modules": {module.label: module.short_label for module in page.modules},
        "layers": page.layers,
        "charts": charts(page),
        "chart_config": config((), page=True),
        "all_runs": _line_chart_rows(rows_of_runs),
        "token_steps": TOKEN_STEPS,
        "runs": [_run(page, run) for run in page.runs],
    }


# ---- charts -----------------------------------------------------------------------------------------------------


def charts(page: PageData) -> dict[str, Any]:
    """Each chart's definition by its name on the page, and the colours of its series."""
    modules = modules_with_style(page.modules)
    made = {
        "heat": _chart(heat_map(page, tall=False)),
        "heat_tall": _chart(heat_map(page, tall=True)),
        "loss": _chart(loss_by_rank(page), _styles(modules)),
        "curve": _chart(loss_chart(page)),
        "spectrum": _chart(spectrum_chart(page)),
    }
    if len(page.runs) > 1:
        styles = run_styles(len(page.runs))
        made["runs"] = _chart(runs_by_rank(page, styles), styles)
    for group in layer_groups(page):
        chart = cosine_by_layer(page, group, axis_end=cosine_axis_end(page))
        made[f"layers_{group.value}"] = _chart(chart, _styles([module for module in modules if module.group is group]))
    return made | {name: _chart(chart) for name, chart in _outputs_charts(page).items()}


def layer_groups(page: PageData) -> list[ModuleGroup]:
    """The groups of modules that have a chart by layer: none where no matrix has a layer."""
    if not any(layer.isdecimal() for layer in page.layers):
        return []
    return [group for group in ModuleGroup if any(module.group is group for module in page.modules)]


def _styles(modules: Sequence[Module]) -> list[int]:
    return [module.style or 0 for module in modules]


def _chart(definition: Spec, styles: Sequence[int] = ()) -> dict[str, Any]:
    return {"definition": definition, "colours": palette(styles, page=True)}


def _outputs_charts(page: PageData) -> dict[str, Spec]:
    if not page.outputs:
        return {}
    positions, confidences = (slice_labels(page.outputs, position=position) for position in (True, False))
    made = {
        "kld": kld_by_rank(page, kld_span(page.outputs)),
        "kld_narrow": kld_by_rank(page, kld_span(page.outputs), names="short_name"),
        "tokens": token_histogram(page),
        "position": kld_by_slice(page, "position", positions, title="position in the document, in tokens"),
        "confidence": kld_by_slice(
            page, "confidence", confidences, title="the finetune's top probability, in %", shares=True
        ),
        "documents": kld_by_document(page),
    }
    parts = [each.parts for outputs in page.outputs for each in outputs.attribution]
    if parts:
        layers, modules = part_axes(page.outputs)
        top_kld, top_share = largest_part(page.outputs)
        made["parts"] = part_map(page, layers, modules, top_kld, tall=False)
        made["parts_tall"] = part_map(page, layers, modules, top_kld, tall=True)
        made["bars"] = part_bars(page, min(max(map(len, parts)), MOST_BARS))
        made["scatter"] = part_scatter(page, top_share)
    return made


# ---- one run ----------------------------------------------------------------------------------------------------


def _run(page: PageData, run: RunView) -> dict[str, Any]:
    return {
        "label": run.label,
        "cells": _packed(as_columns(cell_rows(page, run))),
        "cell_members": [cell.members for cell in run.cells],
        "cell_matrices": [cell.matrices for cell in run.cells],
        "cell_missing": [cell.missing for cell in run.cells],
        "cell_reasons": [cell.reason for cell in run.cells],
        "unlisted_matrices": run.unlisted,
        "activation_sentences": run.activations.sentences if run.activations else None,
        "matrices": _matrices(run.matrices),
        **_line_chart_rows(rank_rows(page, run)),
        "outputs": _outputs(page, run.outputs) if run.outputs else None,
    }


def _line_chart_rows(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {"by_rank": as_columns(rows), "line_ends": as_columns(line_end_rows(rows, gap=LABEL_GAP))}


def _matrices(rows: Sequence[MatrixRow]) -> dict[str, Any]:
    """Columns. Curves and spectra share their indices (ranks, or numbers of singular values), which are stored once."""
    indices: dict[tuple[int, ...], int] = {}
    columns = {
        **{field.name: [getattr(row, field.name) for row in rows] for field in fields(MatrixRow)},
        "activation_lost": [_or_none(row.activation_lost) for row in rows],
        "shape": [" × ".join(f"{side:,}" for side in row.shape) for row in rows],
        "entries": [math.prod(row.shape) for row in rows],
        "curve": [_split(row.curve, indices) for row in rows],
        "spectrum": [_split(row.spectrum, indices) for row in rows],
    }
    return _packed(columns) | {"shared_indices": list(indices)}


def _packed(columns: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """Columns that repeat few values as those values and the number of each row's value; others as they are."""
    return {name: _distinct(column) if _repeats(column) else column for name, column in columns.items()}


def _or_none(values: Sequence[float | None]) -> Sequence[float | None] | None:
    return None if all(value is None for value in values) else values


def _repeats(column: Sequence[Any]) -> bool:
    is_plain = all(value is None or isinstance(value, str | int | bool | float) for value in column)
    return is_plain and len(set(column)) <= len(column) // _LEAST_REPEATED


def _distinct(column: Sequence[Any]) -> dict[str, Any]:
    number = {value: i for i, value in enumerate(dict.fromkeys(column))}
    return {"of": list(number), "at": [number[value] for value in column]}


def _split(points: Sequence[tuple[int, float]], shared: dict[tuple[int, ...], int]) -> list[Any] | None:
    """(number of the shared indices, values)."""
    if not points:
        return None
    indices = tuple(index for index, _ in points)
    return [shared.setdefault(indices, len(shared)), [value for _, value in points]]


def _outputs(page: PageData, outputs: OutputsView) -> dict[str, Any]:
    _, modules = part_axes(page.outputs)
    return {
        "texts": [text.name for text in outputs.texts],
        "default_text": outputs.default_text,
        "base": outputs.base,
        "candidates": [candidate.name for candidate in outputs.candidates],
        "at_rank": [{"candidate": at_rank.index, "is_exact": at_rank.is_exact} for at_rank in outputs.at_rank],
        "rank_sentences": outputs.rank_sentences,
        "by_text": [_on_text(page, outputs, text) for text in range(len(outputs.texts))],
        "excerpts": [
            {"pieces": excerpt.pieces, "kld": excerpt.kld, "is_cut": excerpt.is_cut} for excerpt in outputs.excerpts
        ],
        "samples": [_sample(sample) for sample in outputs.samples],
        "attribution": [
            {
                "rank": each.rank,
                "has_map": each.has_map,
                "sentence": each.sentence,
                "parts": as_columns(part_rows(each, modules)),
            }
            for each in outputs.attribution
        ],
    }


def _on_text(page: PageData, outputs: OutputsView, text: int) -> dict[str, Any]:
    base = None if outputs.base is None else outputs.candidates[outputs.base].logits[text]
    return {
        "points": as_columns(point_rows(outputs, text)),
        "names": as_columns(name_rows(outputs, text, kld_span(page.outputs))),
        "candidates": [
            _candidate(logits, base) if (logits := candidate.logits[text]) else None for candidate in outputs.candidates
        ],
    }


def _candidate(logits: Logits, base: Logits | None) -> dict[str, Any]:
    axes = token_axes(logits, base)
    return {
        "tokens": as_columns(token_rows(logits)),
        "statistics": as_columns(statistic_rows(logits, (axes["first"], axes["last"]))),
        "position": as_columns(position_rows(logits)),
        "confidence": as_columns(confidence_rows(logits)),
        "documents": as_columns(document_rows(logits)),
        "axes": axes,
        "facts": token_facts(logits),
    }


def _sample(sample: SampleView) -> dict[str, Any]:
    return {
        "prompt": sample.prompt,
        "answer": "".join(sample.answer),
        "others": {
            candidate: {
                "answer": "".join(other.words),
                "shared_spans": other.spans(sample.answer),
                "same_first_words": other.same_first_words,
                "is_same": other.is_same_as(sample.answer),
            }
            for candidate, other in sample.others.items()
        },
    }
