"""The main charts as pictures to post: each says what it shows, of which models, and what measured it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from deltarank.report.charts.frame import FONT_SIZE, framed
from deltarank.report.charts.outputs import kld_by_rank
from deltarank.report.charts.theme import modules_with_style, run_styles
from deltarank.report.charts.vega import Spec
from deltarank.report.charts.weights import cosine_by_layer, heat_map, loss_by_rank, runs_by_rank
from deltarank.report.page.payload import LABEL_GAP, layer_groups
from deltarank.report.view.chart_rows import Row, cell_rows, cosine_axis_end, line_end_rows, rank_rows, run_rows
from deltarank.report.view.divergence_rows import kld_span, name_rows, point_rows
from deltarank.report.view.headline import plain_text
from deltarank.report.view.modules import ModuleGroup
from deltarank.report.view.page import PageData, RunView
from deltarank.report.view.text import unbroken
from deltarank.results import listing, shorten

WIDTH = 900
"""The width of the drawing in points. With names and margins a picture is about 1,150 points wide."""

_MOST_HEIGHT = 1800
"""Of rows of maps, in points."""

_MOST_MAPS, _MOST_IN_A_ROW = 5, 3
"""How many maps, and how many charts, stand side by side; more runs make more rows."""

_NAME_HEIGHT, _LETTER_WIDTH = 20, 8


def posters(page: PageData) -> dict[str, Spec]:
    """File name -> picture, at the rank that the page opens with. Empty if no change was measured."""
    if not any(run.energy for run in page.runs):
        return {}
    made = {"heat-map.png": _heat_map(page), "loss-by-rank.png": _loss_by_rank(page)}
    for group in layer_groups(page):
        made[f"layers-{group.value}.png"] = _cosine_by_layer(page, group)
    if any(outputs.texts and point_rows(outputs, outputs.default_text) for outputs in page.outputs):
        made["kld-by-rank.png"] = _kld_by_rank(page)
    return made


def _heat_map(page: PageData) -> Spec:
    subtitle = f"Energy lost by layer and module at rank {page.default_rank} (base: {_bases(page)})"
    layers, modules, runs = len(page.layers), len(page.modules), len(page.runs)
    if runs == 1:
        chart, step = heat_map(page, tall=False, legend=True), 44 if modules <= 8 else 28
        size = min(WIDTH, 90 * layers), step * modules
        return _poster(page, [_panel(chart, size, {"cells": cell_rows(page, page.runs[0])})], subtitle)
    columns = min(runs, _MOST_MAPS)
    height = _map_height(layers, math.ceil(runs / columns))
    size = max(min(WIDTH // columns, 64 * modules), 160), height
    chart = heat_map(page, tall=True, legend=True, height=height)
    panels = [
        _panel(
            _with_outer_axes(chart, i, columns),
            size,
            {"cells": cell_rows(page, run)},
            title=_panel_title(page, run, size),
        )
        for i, run in enumerate(page.runs)
    ]
    return _poster(page, panels, subtitle, columns=columns)


def _map_height(layers: int, rows: int) -> int:
    """The height of each of several maps: of rows of them, as much as a picture has room for."""
    step = 30 if layers <= 12 else 18 if layers <= 48 else 12
    return min(step * max(layers, 1), max(_MOST_HEIGHT // rows, 160))


def _with_outer_axes(chart: Spec, index: int, columns: int) -> Spec:
    """A map of a grid of maps: only the first column names the layers, and only the first row the modules."""
    hidden = {
        channel: {"axis": None} for channel, is_inner in (("y", index % columns), ("x", index >= columns)) if is_inner
    }
    layers = [
        layer | {"encoding": {name: channel | hidden.get(name, {}) for name, channel in layer["encoding"].items()}}
        for layer in chart["layer"]
    ]
    return chart | {"layer": layers}


def _loss_by_rank(page: PageData) -> Spec:
    subtitle = f"Energy lost against LoRA rank (base: {_bases(page)})"
    if len(page.runs) == 1:
        rows, styles = rank_rows(page, page.runs[0]), [m.style or 0 for m in modules_with_style(page.modules)]
        chart, names = loss_by_rank(page), dict[str, str]()
    else:
        rows, styles = run_rows(page), run_styles(len(page.runs))
        chart = runs_by_rank(page, styles, name_height=_NAME_HEIGHT)
        names = {run.label: shorten(run.label, most=26) for run in page.runs}
    datasets = {"by_rank": rows, "line_ends": line_end_rows(rows, gap=LABEL_GAP, names=names)}
    return _poster(page, [_panel(chart, (WIDTH, max(440, chart["height"])), datasets)], subtitle, styles=styles)


def _cosine_by_layer(page: PageData, group: ModuleGroup) -> Spec:
    """The article's chart of one group: a panel for each run, all on one scale."""
    meaning = "0.3 = half of the energy is lost"
    subtitle = f"{group.heading}: cosine distance by layer at rank {page.default_rank} ({meaning})"
    chart = cosine_by_layer(page, group, axis_end=cosine_axis_end(page, page.default_index))
    columns = 1 if len(page.runs) <= _MOST_IN_A_ROW else _MOST_IN_A_ROW
    size = WIDTH // columns, 400 if len(page.runs) == 1 else 220 if columns == 1 else 150
    panels = [
        _panel(chart, size, {"cells": cell_rows(page, run)}, title=_panel_title(page, run, size)) for run in page.runs
    ]
    styles = [module.style or 0 for module in modules_with_style(page.modules) if module.group is group]
    return _poster(page, panels, subtitle, styles=styles, columns=columns)


def _kld_by_rank(page: PageData) -> Spec:
    """Mean KLD by rank with the base and the quantised finetunes: a panel for each run, all on one scale."""
    shown = [(run, run.outputs) for run in page.runs if run.outputs and run.outputs.texts]
    texts = listing(list(dict.fromkeys(outputs.texts[outputs.default_text].name for _, outputs in shown)), most=3)
    subtitle = (
        f"Mean KLD from the finetune in nats per token, on {texts}; reference lines: the base, and quantised versions "
        "of the finetune"
    )
    span = kld_span(page.outputs)
    columns = min(len(shown), _MOST_IN_A_ROW)
    size = WIDTH // columns, 440 if columns == 1 else 340 if len(shown) == columns else 280
    if len(shown) > columns:
        subtitle += "; diamonds: adapters, and truncation alone"
    panels = [
        _panel(
            kld_by_rank(
                page, span, names="name" if columns == 1 else "short_name", names_diamonds=len(shown) == columns
            ),
            size,
            {
                "points": point_rows(outputs, outputs.default_text),
                "names": name_rows(outputs, outputs.default_text, span),
            },
            title=_panel_title(page, run, size),
        )
        for run, outputs in shown
    ]
    is_about_outputs = page.headlines[page.default_index] != page.weights_headline
    title = plain_text(page.headlines[page.default_index]) if is_about_outputs else "Output divergence, by LoRA rank"
    return _poster(page, panels, subtitle, columns=columns, title=title)


def _panel_title(page: PageData, run: RunView, size: tuple[int, int]) -> str | None:
    return shorten(run.label, most=size[0] // _LETTER_WIDTH) if len(page.runs) > 1 else None


def _bases(page: PageData) -> str:
    return listing(list(dict.fromkeys(run.base for run in page.runs)), most=3)


def _panel(
    chart: Spec, size: tuple[int, int], datasets: Mapping[str, Sequence[Row]], *, title: str | None = None
) -> Spec:
    """A chart of this width and height with the rows of its datasets, ready to be put beside others."""
    panel: Spec = {key: _with_rows(value, datasets) for key, value in chart.items() if key != "$schema"}
    panel |= {"width": size[0], "height": size[1]}
    return panel | ({"title": {"text": title, "fontSize": FONT_SIZE, "offset": 8, "frame": "group"}} if title else {})


def _with_rows(part: Any, datasets: Mapping[str, Sequence[Row]]) -> Any:
    if isinstance(part, list):
        return [_with_rows(item, datasets) for item in part]
    if not isinstance(part, dict):
        return part
    if set(part) == {"name"} and part["name"] in datasets:
        return {"values": list(datasets[part["name"]])}
    return {key: _with_rows(value, datasets) for key, value in part.items()}


def _poster(
    page: PageData,
    panels: Sequence[Spec],
    subtitle: str,
    *,
    styles: Sequence[int] = (),
    columns: int = 1,
    title: str | None = None,
) -> Spec:
    """The panels in rows of `columns`, under a title: by default the headline on the weights. They share a legend."""
    without_params = [{key: value for key, value in panel.items() if key != "params"} for panel in panels]
    shared = {"resolve": {"legend": dict.fromkeys(("color", "shape"), "shared")}} if len(panels) > 1 else {}
    body = {"concat": without_params, "columns": columns, "spacing": 24, **shared}
    headline = unbroken(title) if title else plain_text(page.weights_headline)
    return framed(body, headline, subtitle, styles=styles, params=panels[0]["params"])
