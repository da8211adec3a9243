"""The charts of the weights over all matrices of a run, or over runs."""

from __future__ import annotations

from collections.abc import Sequence

from deltarank.report.charts.building_blocks import (
    PERCENT_LABEL,
    ROW_TOOLTIP,
    cell_style,
    chart_at_rank,
    label_leaders,
    map_axes,
    map_height,
    ramp_colour,
    rank_axis,
    right_labels,
    selected_rank_line,
)
from deltarank.report.charts.theme import DASHES, SHAPES, modules_with_style
from deltarank.report.charts.vega import Spec, either, field, param, rows_of
from deltarank.report.view.modules import Module, ModuleGroup
from deltarank.report.view.page import PageData

_FEW_LAYERS = 80

_LOST_AT_RANK = "datum['lost_' + rank]"
_COSINE_AT_RANK = f"{_LOST_AT_RANK} / (1 + sqrt(1 - {_LOST_AT_RANK}))"


def heat_map(page: PageData, *, tall: bool, legend: bool = False, height: int | None = None) -> Spec:
    """Layer x module, coloured by the energy lost at `rank`, from 0 to 1 at every rank. `tall`: layers on the y axis.

    Grey cells have no loss: "=" where finetuning changed nothing, "×" where nothing could be measured.
    The parameters `cursor_layer` and `cursor_module` outline one cell.
    """
    height = height or map_height(page.layers, page.modules, tall=tall)
    style = cell_style(page.layers, height, tall=tall)
    x, y = map_axes(page.layers, page.modules, height=height, tall=tall)
    cells = rows_of("cells").having(lost=_LOST_AT_RANK)
    measured = cells.where("isValid(datum.lost) && !datum.unchanged")
    others = cells.where("!isValid(datum.lost) || datum.unchanged").having(sign="datum.unchanged ? '=' : '\u00d7'")
    at_cursor = cells.where("datum.layer === cursor_layer && datum.module === cursor_module")
    layers = [
        measured.mark("rect", style=style, cursor="pointer", tooltip=ROW_TOOLTIP).encode(
            x=x, y=y, color=ramp_colour("lost", 1.0, legend=_LEGEND if legend else None)
        ),
        others.mark("rect", style="ghost", cursor="pointer", tooltip=ROW_TOOLTIP).encode(x=x, y=y),
        others.mark("text", style="ghost-mark", tooltip=None).encode(x=x, y=y, text="sign:N"),
        at_cursor.mark("rect", style="cursor", tooltip=None).encode(x=x, y=y),
    ]
    cursor = param("cursor_layer", ""), param("cursor_module", "")
    return chart_at_rank(page, layers, *cursor, height=height)


_LEGEND = {
    "title": "energy lost (light = kept, dark = lost)",
    "orient": "top",
    "direction": "horizontal",
    "gradientLength": 360,
    "gradientThickness": 10,
    "values": [0, 0.25, 0.5, 0.75, 1],
    "labelExpr": PERCENT_LABEL,
    "titleLimit": 400,
}


def lost_axis() -> Spec:
    """The energy lost, from 0 to 1."""
    axis = {"title": "energy lost", "values": [0, 0.25, 0.5, 0.75, 1], "labelExpr": PERCENT_LABEL}
    return field("lost:Q", scale={"domain": [0, 1]}, axis=axis)


def loss_by_rank(page: PageData) -> Spec:
    """Energy lost against rank: a line for each module, a thick one for all matrices, names at the right end.

    A dashed one is the activation-weighted loss of all matrices, where it was measured.
    """
    x, y = rank_axis(page), lost_axis()
    points = rows_of("by_rank")
    kinds = ("module", "rest", "whole", "outputs")
    modules, rest, whole, outputs = (points.where(f"datum.kind === '{kind}'") for kind in kinds)
    series = _module_series(page.modules)
    layers = [
        selected_rank_line(x),
        rest.mark("line", style="rest", tooltip=None).encode(x=x, y=y, detail="module:N"),
        modules.mark("line", strokeWidth=1.75, tooltip=None).encode(
            x=x, y=y, color=series["color"], strokeDash=series["strokeDash"]
        ),
        modules.mark("point", filled=True, size=38, opacity=1, tooltip=ROW_TOOLTIP).encode(
            x=x, y=y, color=series["color"], shape=series["shape"]
        ),
        outputs.mark("line", style="primary-line", strokeDash=[6, 4], tooltip=None).encode(x=x, y=y),
        whole.mark("line", style="primary-line", tooltip=None).encode(x=x, y=y),
        *(
            each.mark("circle", style="primary-dot", size=60, opacity=1, tooltip=ROW_TOOLTIP).encode(x=x, y=y)
            for each in (outputs, whole)
        ),
        *_line_labels(series["color"], y),
    ]
    return chart_at_rank(page, layers, height=320)


def runs_by_rank(page: PageData, styles: Sequence[int], *, name_height: int = 14) -> Spec:
    """Energy lost against rank: a line for each run. It is as high as the names at the lines' ends need.

    The parameter `shown_run` is the name of the run whose line is thick among many.
    """
    x, y = rank_axis(page), lost_axis()
    series = _series([run.label for run in page.runs], styles)
    points = rows_of("by_rank")
    is_thick = "datum.module === shown_run" if page.shows_one_run else "true"
    layers = [
        selected_rank_line(x),
        points.mark("line", tooltip=None).encode(
            x=x, y=y, color=series["color"], strokeDash=series["strokeDash"], strokeWidth=either(is_thick, 3, 1)
        ),
        points.mark("point", filled=True, size=30 if page.shows_one_run else 70, opacity=1, tooltip=ROW_TOOLTIP).encode(
            x=x, y=y, color=series["color"], shape=series["shape"]
        ),
        *_line_labels(series["color"], y),
    ]
    return chart_at_rank(page, layers, param("shown_run", ""), height=max(320, name_height * len(page.runs)))


def _line_labels(colour: Spec, y: Spec) -> list[Spec]:
    ends = rows_of("line_ends")
    return [
        label_leaders(ends, y),
        right_labels(ends.where("datum.kind === 'module'"), y, color=colour),
        right_labels(ends.where("datum.kind === 'whole' || datum.kind === 'outputs'"), y, style="primary-name"),
    ]


def cosine_by_layer(page: PageData, group: ModuleGroup, *, axis_end: float) -> Spec:
    """The article's chart: cosine distance by layer at `rank`, for the modules of one group."""
    series = _module_series([module for module in page.modules if module.group is group])
    numbers = [int(layer) for layer in page.layers if layer.isdecimal()]
    first, last = min(numbers, default=0), max(numbers, default=0)
    x_axis = {"title": "layer", "format": "d", "tickMinStep": 1, "grid": False, "labelOverlap": "greedy"}
    x = field("layer_number:Q", scale={"domain": [first, max(last, first + 1)], "nice": False}, axis=x_axis)
    y = field("cosine:Q", scale={"domain": [0, axis_end]}, axis={"title": "cosine distance", "tickCount": 5})
    points = (
        rows_of("cells")
        .where(f"datum.group === '{group.value}' && isValid(datum.layer_number)")
        .having(lost=_LOST_AT_RANK)
        .where("isValid(datum.lost)")
        .having(cosine=_COSINE_AT_RANK)
    )
    styled, rest = points.where("datum.has_style"), points.where("!datum.has_style")
    legend = {"title": None, "orient": "top", "direction": "horizontal", "labelLimit": 160}
    colour, shape = (series[channel] | {"legend": legend} for channel in ("color", "shape"))
    layers = [
        rest.mark("line", style="rest", tooltip=None).encode(x=x, y=y, detail="module:N"),
        styled.mark("line", strokeWidth=1.75, tooltip=None).encode(
            x=x, y=y, color=colour, strokeDash=series["strokeDash"]
        ),
        styled.mark(
            "point",
            filled=True,
            size=34 if len(page.layers) <= _FEW_LAYERS else 8,
            opacity=1,
            cursor="pointer",
            tooltip=ROW_TOOLTIP,
        ).encode(x=x, y=y, color=colour, shape=shape),
    ]
    return chart_at_rank(page, layers, height=220)


def _module_series(modules: Sequence[Module]) -> dict[str, Spec]:
    styled = modules_with_style(modules)
    return _series([module.label for module in styled], [module.style or 0 for module in styled])


def _series(names: Sequence[str], styles: Sequence[int]) -> dict[str, Spec]:
    """Colour, dash and shape by name; the colours themselves are in the config."""
    # One name more than the others: legends of equal domains merge, and symbols outlined with dashes look torn.
    dashes = {"domain": [*names, ""], "range": [*(DASHES[style] for style in styles), [1, 0]]}
    shapes = {"domain": list(names), "range": [SHAPES[style] for style in styles]}
    return {
        "color": field("module:N", scale={"domain": list(names), "range": "category"}, legend=None),
        "strokeDash": field("module:N", scale=dashes, legend=None),
        "shape": field("module:N", scale=shapes, legend=None),
    }
