"""The charts of outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deltarank.report.charts.building_blocks import (
    NUMBER_LABEL,
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
from deltarank.report.charts.vega import Spec, field, own_rows, param, rows_of, value
from deltarank.report.view.divergence_rows import Span, round_ticks
from deltarank.report.view.modules import Module
from deltarank.report.view.page import PageData

_NAME_WIDTHS = {"name": 190, "short_name": 150}
"""The most room for the name of a candidate, in pixels, by its column."""

_SPAN = ({"expr": "low"}, {"expr": "high"})


def kld_by_rank(page: PageData, span: Span, *, names: str = "name", names_diamonds: bool = True) -> Spec:
    """Mean KLD against rank with its interval; the base and the quantised finetunes as reference lines.

    Diamonds are adapters, and truncation alone. A thin line leads from each to its name, beside those of the lines.

    Args:
        names: the column with the names, "name" or "short_name".
        names_diamonds: whether there is room for the names of the diamonds.
    """
    x, y = rank_axis(page), _kld_axis(span, round_ticks(span))
    points, named = rows_of("points"), rows_of("names")
    ranks, others = points.where("datum.kind === 'rank'"), points.where("datum.kind !== 'rank'")
    references, diamonds = named.where("datum.rank === null"), named.where("datum.rank !== null")
    labelled = named if names_diamonds else references
    diamond = {"shape": "diamond", "filled": True, "size": 90}
    layers = [
        selected_rank_line(x),
        *(
            diamonds.mark("rule", style="leader", tooltip=None).encode(x=x, x2=value("width"), y=y)
            for _ in range(names_diamonds)
        ),
        references.mark("rule", style="reference", tooltip=ROW_TOOLTIP).encode(y=y),
        label_leaders(labelled, y),
        right_labels(labelled, y, style="note", name=names, limit=_NAME_WIDTHS[names]),
        ranks.mark("area", style="spread", tooltip=None).encode(x=x, y=field("low:Q", scale=y["scale"]), y2="high:Q"),
        ranks.mark("line", style="primary-line", tooltip=None).encode(x=x, y=y),
        ranks.mark("circle", style="primary-dot", size=60, opacity=1, tooltip=ROW_TOOLTIP).encode(x=x, y=y),
        others.mark("point", style="primary-dot", opacity=1, tooltip=ROW_TOOLTIP, **diamond).encode(x=x, y=y),
    ]
    return chart_at_rank(page, layers, height=320)


def _kld_axis(ends: Sequence[Any], ticks: Any) -> Spec:
    axis = {
        "title": "nats per token",
        "values": ticks,
        "labelExpr": NUMBER_LABEL,
        "grid": True,
        "labelOverlap": "greedy",
    }
    return field("kld:Q", scale={"type": "log", "domain": list(ends), "nice": False}, axis=axis)


def token_histogram(page: PageData) -> Spec:
    """The distribution of KLD over tokens; the base's as an outline, the mean and the tail as lines."""
    scale = {"type": "log", "domain": [{"expr": "first"}, {"expr": "last"}], "nice": False}
    x_axis = {
        "title": "nats at a token",
        "labelExpr": NUMBER_LABEL,
        "grid": False,
        "tickCount": 5,
        "labelOverlap": "greedy",
        "labelSeparation": 8,
    }
    y_axis = {"title": "share of the tokens", "tickCount": 3, "labelExpr": PERCENT_LABEL}
    x, x_statistic = (field(f"{column}:Q", scale=scale, axis=x_axis) for column in ("from", "value"))
    y = field("share:Q", scale={"domain": [0, {"expr": "top"}]}, axis=y_axis)
    is_on_axis = "datum.from >= first * 0.999 && datum.from < last"
    bars, base = (rows_of(name).where(is_on_axis) for name in ("tokens", "tokens_base"))
    statistics = rows_of("statistics")
    layers = [
        bars.mark("bar", style="bar", tooltip=ROW_TOOLTIP).encode(x=x, x2="to:Q", y=y, y2={"datum": 0}),
        base.mark("line", style="ghost-line", interpolate="step-after", tooltip=None).encode(x=x, y=y),
        statistics.mark("rule", style="reference", tooltip=None).encode(x=x_statistic),
        *(
            statistics.where(f"datum.name === '{name}'")
            .mark("text", style="note", align=align, baseline="top", dx=dx, dy=dy, tooltip=None)
            .encode(x=x_statistic, y=value(0), text="name:N")
            for name, align, dx, dy in (("median", "right", -3, 0), ("mean", "left", 3, 0), ("99.9 %", "right", -3, 15))
        ),
    ]
    params = param("first", 1e-6), param("last", 10.0), param("top", 1.0)
    return chart_at_rank(page, layers, *params, height=190)


def kld_by_slice(page: PageData, name: str, labels: Sequence[str], *, title: str, shares: bool = False) -> Spec:
    """The KLD of each slice of the tokens as a tick; the base's in grey. `shares` adds each slice's share of them."""
    axis = {"title": title, "labelAngle": 0, "labelOverlap": "greedy", "grid": False}
    x = field("label:N", sort=list(labels), scale={"domain": list(labels)}, axis=axis)
    y = _kld_axis(_SPAN, {"expr": "ticks"})
    tick: dict[str, Any] = {"orient": "horizontal", "thickness": 3}
    slices = rows_of(name)
    layers = [
        rows_of(f"{name}_base").mark("tick", style="ghost-tick", tooltip=None, **tick).encode(x=x, y=y),
        slices.mark("tick", style="primary-tick", tooltip=ROW_TOOLTIP, **tick).encode(x=x, y=y),
    ]
    if shares:
        share = slices.mark("text", style="note", baseline="top", dy=6, tooltip=None)
        layers.append(share.encode(x=x, y=y, text="share:N"))
    return _candidate_chart(page, layers)


def kld_by_document(page: PageData) -> Spec:
    """A point for each document, smallest KLD first; the base's in grey."""
    axis = {"title": "document", "format": "d", "tickMinStep": 1, "grid": False, "labelOverlap": "greedy"}
    x = field("number:Q", scale={"zero": False, "nice": False, "padding": 8}, axis=axis)
    y = _kld_axis(_SPAN, {"expr": "ticks"})
    layers = [
        rows_of(name).mark("circle", style=style, size=40, opacity=1, tooltip=tooltip).encode(x=x, y=y)
        for name, style, tooltip in (
            ("documents_base", "ghost-tick", None),
            ("documents", "primary-dot", ROW_TOOLTIP),
        )
    ]
    return _candidate_chart(page, layers)


def _candidate_chart(page: PageData, layers: Sequence[Spec]) -> Spec:
    """A chart whose KLD axis follows the candidate that is shown."""
    params = param("low", 0.01), param("high", 1.0), param("ticks", [0.1])
    return chart_at_rank(page, layers, *params, height=190)


def part_map(page: PageData, layers: Sequence[str], modules: Sequence[Module], top: float, *, tall: bool) -> Spec:
    """Layer x module, coloured by the KLD of this one matrix: from 0 to the largest at any rank."""
    height = map_height(layers, modules, tall=tall)
    x, y = map_axes(layers, modules, height=height, tall=tall)
    cells = rows_of("parts").mark("rect", style=cell_style(layers, height, tall=tall), tooltip=ROW_TOOLTIP)
    return chart_at_rank(page, [cells.encode(x=x, y=y, color=ramp_colour("kld", top))], height=height)


def part_bars(page: PageData, bars: int) -> Spec:
    """Each part's share of the KLD as a bar with its interval, and of the loss in the weights as a mark across it."""
    parts = rows_of("parts").where("datum.has_bar")
    of_the_sum = "* datum.share_kld / datum.kld"
    intervals = parts.where("isNumber(datum.low) && datum.kld > 0").having(
        share_low=f"datum.low {of_the_sum}", share_high=f"datum.high {of_the_sum}"
    )
    y = field("name:N", sort=None, axis={"title": None, "labelLimit": 150, "labelOverlap": False})
    axis = {"title": "share of the sum over all parts", "labelExpr": PERCENT_LABEL, "tickCount": 5}
    kld, low, lost = (field(f"{column}:Q", axis=axis) for column in ("share_kld", "share_low", "share_lost"))
    layers = [
        parts.mark("bar", style="bar", height={"band": 0.6}, tooltip=ROW_TOOLTIP).encode(y=y, x=kld),
        intervals.mark("rule", style="selected-rank", tooltip=None).encode(y=y, x=low, x2="share_high:Q"),
        parts.mark("tick", style="primary-tick", thickness=2, tooltip=ROW_TOOLTIP).encode(y=y, x=lost),
    ]
    return chart_at_rank(page, layers, height=20 * max(bars, 1))


def part_scatter(page: PageData, top: float) -> Spec:
    """Each part's share of the loss in the weights against its share of the KLD, and a line where they are equal."""
    scale = {"type": "sqrt", "domain": [0, top * 1.05], "nice": False}
    axis = {"labelExpr": PERCENT_LABEL, "tickCount": 4, "labelOverlap": "greedy"}
    x = field("share_lost:Q", scale=scale, axis={"title": "share of the loss in the weights", **axis})
    y = field("share_kld:Q", scale=scale, axis={"title": "share of the KLD", **axis})
    parts = rows_of("parts")
    diagonal = own_rows([{"share_lost": 0, "share_kld": 0}, {"share_lost": top, "share_kld": top}])
    layers = [
        diagonal.mark("line", style="reference", tooltip=None).encode(x=x, y=y),
        parts.mark("circle", style="primary-dot", size=45, opacity=0.75, tooltip=ROW_TOOLTIP).encode(x=x, y=y),
        *(
            parts.where(f"datum.is_named && datum.share_lost {sign} {top * 0.3}")
            .mark("text", style="note", align=align, dx=dx, limit=150, tooltip=None)
            .encode(x=x, y=y, text="name:N")
            for sign, align, dx in (("<", "left", 7), (">=", "right", -7))
        ),
    ]
    return chart_at_rank(page, layers, height=260)
