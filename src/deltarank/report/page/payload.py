"""PageData -> the plain numbers that the page's script draws from, and their safe spelling in the page."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from deltarank.report.charts.matrix import curve, spectrum
from deltarank.report.charts.theme import config, palette, run_styles, styled
from deltarank.report.charts.vega import Spec
from deltarank.report.charts.weights import by_layer, heat_map, loss_by_rank, runs_by_rank
from deltarank.report.page.outputs_payload import outputs_payload
from deltarank.report.view.chart_rows import cell_rows, columns, end_rows, rank_rows, run_rows, top_cosine
from deltarank.report.view.modules import Group, Module
from deltarank.report.view.page import MatrixRow, PageData, RunView

LABEL_GAP = 0.05
"""How far apart names stand at the ends of lines, as a part of the chart's height."""

_FIGURES = (
    "name",
    "layer",
    "dtype",
    "reason",
    "lost",
    "share",
    "relative_norm",
    "frobenius",
    "mean_abs",
    "max_rank",
    "stable_rank",
    "effective_rank",
    "signal_rank",
    "rounding_floor",
    "floor_level",
    "noise_edge",
    "solver",
)


def payload(page: PageData) -> dict[str, Any]:
    """What the script needs: the dial, the modules, the runs, the charts and their config."""
    return {
        "ranks": page.ranks,
        "legal": page.legal,
        "start": page.default,
        "headlines": [[[phrase.text, phrase.name] for phrase in headline] for headline in page.headlines],
        "figures": page.figures,
        "modules": [module.label for module in page.modules],
        "short": {module.label: module.short for module in page.modules},
        "layers": page.layers,
        "charts": charts(page),
        "config": config((), page=True),
        "by_run": _by_run(page),
        "runs": [_run(page, run) for run in page.runs],
        "outputs": outputs_payload(page),
    }


def charts(page: PageData) -> dict[str, Any]:
    """Each chart's definition, and the colours of its series."""
    modules = styled(page.modules)
    many = run_styles(len(page.runs))
    made = {
        "heat": _chart(heat_map(page, tall=False), []),
        "heat_tall": _chart(heat_map(page, tall=True, step=tall_step(page)), []),
        "loss": _chart(loss_by_rank(page), _numbers(modules)),
        "curve": _chart(curve(page), []),
        "spectrum": _chart(spectrum(page), []),
    }
    if len(page.runs) > 1:
        made["runs"] = _chart(runs_by_rank(page, [run.label for run in page.runs], many), many)
    for group in layer_groups(page):
        members = [module for module in modules if module.group is group]
        made[f"layers_{group.value}"] = _chart(by_layer(page, group, top=top_cosine(page)), _numbers(members))
    return made


def layer_groups(page: PageData) -> list[Group]:
    """The groups that have a chart by layer: none where no matrix has a layer."""
    if not any(layer.isdecimal() for layer in page.layers):
        return []
    return [group for group in Group if any(module.group is group for module in page.modules)]


def tall_step(page: PageData) -> int:
    """The height of a layer where layers run down the page."""
    return 22 if len(page.layers) <= 24 else 16 if len(page.layers) <= 48 else 12


def _numbers(modules: Sequence[Module]) -> list[int]:
    return [module.style or 0 for module in modules]


def _chart(spec: Spec, styles: Sequence[int]) -> dict[str, Any]:
    return {"spec": spec, "colours": palette(styles, page=True)}


def _by_run(page: PageData) -> dict[str, Any] | None:
    if len(page.runs) < 2:
        return None
    rows = run_rows(page)
    return {"by_rank": columns(rows), "ends": columns(end_rows(rows, gap=LABEL_GAP))}


def _run(page: PageData, run: RunView) -> dict[str, Any]:
    by_rank = rank_rows(page, run)
    return {
        "label": run.label,
        "losses": [None if x is None else [x.energy_kept, x.relative_error, x.cosine_distance] for x in run.losses],
        "cells": columns(cell_rows(page, run)),
        "members": [cell.members for cell in run.cells],
        "counts": [cell.matrices for cell in run.cells],
        "unlisted": run.unlisted,
        "missing": [cell.missing for cell in run.cells],
        "reasons": [cell.reason for cell in run.cells],
        "shares": [cell.share for cell in run.cells],
        "by_rank": columns(by_rank),
        "ends": columns(end_rows(by_rank, gap=LABEL_GAP)),
        "matrices": _matrices(run.matrices),
    }


def _matrices(rows: Sequence[MatrixRow]) -> dict[str, Any]:
    """Figures column by column. Curves and spectra share the places at which they are known, so these stand once."""
    places: dict[tuple[int, ...], int] = {}
    return {
        **{name: [getattr(row, name) for row in rows] for name in _FIGURES},
        "shape": [" × ".join(f"{side:,}" for side in row.shape) for row in rows],
        "entries": [math.prod(row.shape) for row in rows],
        "curve": [_parted(row.curve, places) for row in rows],
        "spectrum": [_parted(row.spectrum, places) for row in rows],
        "places": list(places),
    }


def _parted(points: Sequence[tuple[int, float]], places: dict[tuple[int, ...], int]) -> list[Any] | None:
    if not points:
        return None
    at = tuple(place for place, _ in points)
    return [places.setdefault(at, len(places)), [value for _, value in points]]


def embedded(data: Any) -> str:
    """JSON that stands in a page as it is: nothing in it can end the script element or start markup."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
