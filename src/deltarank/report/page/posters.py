"""The main charts as pictures fit to post: each says what it shows, of what, and by what it was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deltarank.report.charts.frame import SIZE, framed
from deltarank.report.charts.outputs import kld_by_rank
from deltarank.report.charts.theme import run_styles, styled
from deltarank.report.charts.vega import Spec
from deltarank.report.charts.weights import by_layer, heat_map, loss_by_rank, runs_by_rank
from deltarank.report.page.payload import LABEL_GAP, layer_groups
from deltarank.report.view.chart_rows import Row, cell_rows, end_rows, rank_rows, run_rows, top_cosine
from deltarank.report.view.headline import plain
from deltarank.report.view.modules import Group
from deltarank.report.view.outputs_chart_rows import kld_span, level_rows, point_rows, views
from deltarank.report.view.page import PageData, RunView
from deltarank.report.view.text import short, unbroken
from deltarank.results import listing

WIDTH = 900
"""The width of the drawing in points; with names and margins a picture is about 1,150 points wide."""


def pictures(page: PageData) -> dict[str, Spec]:
    """File name -> picture, at the rank where the dial stands at first. None where no change was measured."""
    if not any(run.energy for run in page.runs):
        return {}
    made = {"heat-map.png": _heat(page), "loss-by-rank.png": _loss(page)}
    for group in layer_groups(page):
        made[f"layers-{group.value}.png"] = _layers(page, group)
    return made | ({"kld-by-rank.png": _kld(page)} if _has_kld(page) else {})


def _heat(page: PageData) -> Spec:
    about = f"Energy lost by layer and module at rank {page.default_rank} (base: {_bases(page)})"
    if len(page.runs) == 1:
        run = page.runs[0]
        across = min(WIDTH, 90 * len(page.layers))
        chart = heat_map(page, tall=False, legend=True, width=across, step=44 if len(page.modules) <= 8 else 28)
        return _picture(page, [_unit(chart, {"cells": cell_rows(page, run)})], about, styles=[])
    each = min(WIDTH // len(page.runs), 64 * len(page.modules))
    step = 30 if len(page.layers) <= 12 else 18 if len(page.layers) <= 48 else 12
    units = [
        _unit(
            heat_map(page, tall=True, legend=i == 0, width=max(each, 160), step=step),
            {"cells": cell_rows(page, run)},
            title=run.label,
        )
        for i, run in enumerate(page.runs)
    ]
    return _picture(page, units, about, styles=[], across=True)


def _loss(page: PageData) -> Spec:
    about = f"Energy lost against LoRA rank (base: {_bases(page)})"
    if len(page.runs) == 1:
        rows = rank_rows(page, page.runs[0])
        chart = loss_by_rank(page, width=WIDTH, height=440)
        return _picture(page, [_unit(chart, _lines(rows))], about, styles=[m.style or 0 for m in styled(page.modules)])
    styles = run_styles(len(page.runs))
    rows = run_rows(page)
    chart = runs_by_rank(page, [run.label for run in page.runs], styles, width=WIDTH, height=440)
    names = {run.label: short(run.label, most=26) for run in page.runs}
    return _picture(page, [_unit(chart, _lines(rows, names))], about, styles=styles)


def _lines(rows: Sequence[Row], names: dict[str, str] | None = None) -> dict[str, list[Row]]:
    return {"by_rank": list(rows), "ends": end_rows(rows, gap=LABEL_GAP, names=names)}


def _layers(page: PageData, group: Group) -> Spec:
    """The article's chart of one group: a panel a run, one scale for all."""
    about = f"{group.heading}: cosine distance by layer at rank {page.default_rank} (0.3 = half of the energy is gone)"
    styles = [m.style or 0 for m in styled(page.modules) if m.group is group]
    height = 400 if len(page.runs) == 1 else 220
    units = [
        _unit(
            by_layer(page, group, top=top_cosine(page, page.default), width=WIDTH, height=height),
            {"cells": cell_rows(page, run)},
            title=_panel_title(page, run),
        )
        for run in page.runs
    ]
    return _picture(page, units, about, styles=styles)


def _has_kld(page: PageData) -> bool:
    return any(outputs.texts and point_rows(outputs, outputs.start) for outputs in views(page))


def _kld(page: PageData) -> Spec:
    """Mean KLD by rank between the base and the quantised finetunes: a panel a run, one scale for all."""
    shown = [(run, run.outputs) for run in page.runs if run.outputs and run.outputs.texts]
    texts = listing(list(dict.fromkeys(outputs.texts[outputs.start].name for _, outputs in shown)), most=3)
    about = f"Mean KLD from the finetune in nats per token, on {texts}; across: the base, and the finetune quantised"
    span = kld_span(page)
    units = [
        _unit(
            kld_by_rank(page, span, width=max(WIDTH // len(shown), 220), height=440 if len(shown) == 1 else 340),
            {"points": point_rows(outputs, outputs.start), "levels": level_rows(outputs, outputs.start, span)},
            title=_panel_title(page, run),
        )
        for run, outputs in shown
    ]
    said = shown[0][1].sentences[:1] if len(page.runs) == 1 else ()
    sentence = said[0] if said else "How far what it says is from the finetune, by LoRA rank"
    return _picture(page, units, about, styles=[], across=len(units) > 1, sentence=sentence)


def _panel_title(page: PageData, run: RunView) -> str | None:
    return run.label if len(page.runs) > 1 else None


def _bases(page: PageData) -> str:
    return listing(list(dict.fromkeys(run.base for run in page.runs)), most=3)


def _unit(chart: Spec, datasets: Mapping[str, Sequence[Row]], *, title: str | None = None) -> Spec:
    """A chart with its rows put in, ready to stand beside others."""
    filled: Spec = {key: _filled(value, datasets) for key, value in chart.items() if key != "$schema"}
    return filled | ({"title": {"text": title, "fontSize": SIZE, "offset": 8}} if title else {})


def _filled(part: Any, datasets: Mapping[str, Sequence[Row]]) -> Any:
    if isinstance(part, list):
        return [_filled(item, datasets) for item in part]
    if not isinstance(part, dict):
        return part
    if set(part) == {"name"} and part["name"] in datasets:
        return {"values": list(datasets[part["name"]])}
    return {key: _filled(value, datasets) for key, value in part.items()}


def _picture(
    page: PageData,
    units: Sequence[Spec],
    about: str,
    *,
    styles: Sequence[int],
    across: bool = False,
    sentence: str | None = None,
) -> Spec:
    """The units under a sentence, the page's if none is given, over the tool's name."""
    bare = [{key: value for key, value in unit.items() if key != "params"} for unit in units]
    body = {"hconcat" if across else "vconcat": bare, "spacing": 24}
    said = unbroken(sentence) if sentence else plain(page.headlines[page.default])
    return framed(body, said, about, styles=styles, parameters=units[0]["params"])
