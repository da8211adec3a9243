"""The charts of outputs, defined as those of the weights are: they name their data and carry none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from deltarank.report.charts.theme import RAMP
from deltarank.report.charts.vega import Spec, field, own_rows, param, rows_of, value
from deltarank.report.charts.weights import WHOLE_ROW, dial_rule, rank_axis, with_dial
from deltarank.report.view.modules import Module
from deltarank.report.view.outputs_chart_rows import Span
from deltarank.report.view.page import PageData

MOST_TICKS = 9
_WITHIN = "datum.from >= first * 0.999 && datum.from < last"
_PERCENT = "format(100 * datum.value, '~r') + '\\u00a0%'"
_PLAIN = "format(datum.value, datum.value < 0.001 ? '.0e' : '~r')"


def kld_by_rank(page: PageData, span: Span, *, width: int | str = "container", height: int = 320) -> Spec:
    """Mean KLD against rank with its interval, between the base and the quantised finetunes as lines across."""
    x, y = rank_axis(page), _nats(span, "nats per token")
    points = rows_of("points")
    ranks = points.where("datum.kind === 'rank'")
    others = points.where("datum.kind !== 'rank'")
    levels = rows_of("levels")
    right, text = value("width"), {"align": "left", "dx": 22, "limit": 130, "tooltip": None}
    place = field("label_at:Q", scale=_log(span), axis=y["axis"])
    layers = [
        dial_rule(x),
        levels.mark("rule", style="level", tooltip=WHOLE_ROW).encode(y=y),
        levels.mark("rule", style="leader", xOffset=5, x2Offset=18, tooltip=None).encode(
            x=right, x2=value("width"), y=y, y2="label_at:Q"
        ),
        levels.mark("text", style="note", **text).encode(x=right, y=place, text="name:N"),
        ranks.mark("area", style="spread", tooltip=None).encode(x=x, y=field("low:Q", scale=_log(span)), y2="high:Q"),
        ranks.mark("line", style="whole", tooltip=None).encode(x=x, y=y),
        ranks.mark("circle", style="whole-dot", size=60, opacity=1, tooltip=WHOLE_ROW).encode(x=x, y=y),
        others.mark(
            "point", style="whole-dot", shape="diamond", filled=True, size=90, opacity=1, tooltip=WHOLE_ROW
        ).encode(x=x, y=y),
        *(
            others.mark("text", style=style, baseline="top", dy=8, limit=120, tooltip=None).encode(
                x=x, y=y, text="name:N"
            )
            for style in ("halo", "note")
        ),
    ]
    return with_dial(page, layers, width=width, height=height)


def _log(span: Span) -> Spec:
    return {"type": "log", "domain": list(span), "nice": False}


def _nats(span: Span, title: str | None) -> Spec:
    axis = {"title": title, "values": ticks(span), "labelExpr": _PLAIN, "grid": True, "labelOverlap": "greedy"}
    return field("kld:Q", scale=_log(span), axis=axis)


def _free_nats() -> Spec:
    """An axis whose ends and ticks are parameters of the chart: they follow what is shown."""
    axis = {
        "title": "nats per token",
        "values": {"expr": "ticks"},
        "labelExpr": _PLAIN,
        "grid": True,
        "labelOverlap": "greedy",
    }
    ends = [{"expr": "low"}, {"expr": "high"}]
    return field("kld:Q", scale={"type": "log", "domain": ends, "nice": False}, axis=axis)


def _axis_params() -> list[Spec]:
    return [param("low", 0.01), param("high", 1.0), param("ticks", [0.1])]


def ticks(span: Span) -> list[float]:
    """1, 2, 5, 10, ... within the span; powers of ten alone where that would be many."""
    powers = range(math.floor(math.log10(span[0])) - 1, math.ceil(math.log10(span[1])) + 1)
    for steps in ((1, 2, 5), (1,)):
        found = [float(f"{step}e{power}") for power in powers for step in steps]
        within = [value for value in found if span[0] * 0.999 <= value <= span[1] * 1.001]
        if len(within) <= MOST_TICKS:
            return within
    return within


def tokens(page: PageData, *, width: int | str = "container", height: int = 190) -> Spec:
    """Histogram of token KLD; the base's as an outline, the mean and the tail as lines."""
    ends = [{"expr": "first"}, {"expr": "last"}]
    heights = [0, {"expr": "top"}]
    scale = {"type": "log", "domain": ends, "nice": False}
    axis = {"title": "nats at a token", "labelExpr": _PLAIN, "grid": False, "tickCount": 5, "labelOverlap": "greedy"}
    x = field("from:Q", scale=scale, axis=axis)
    share = {"title": "of the tokens", "tickCount": 3, "labelExpr": _PERCENT}
    y = field("share:Q", scale={"domain": heights}, axis=share)
    bars = rows_of("tokens").where(_WITHIN)
    base = rows_of("tokens_base").where(_WITHIN)
    marks = rows_of("marks")
    at = field("at:Q", scale=scale, axis=axis)
    layers = [
        bars.mark("bar", style="bar", tooltip=WHOLE_ROW).encode(x=x, x2="to:Q", y=y, y2={"datum": 0}),
        base.mark("line", style="ghost-line", interpolate="step-after", tooltip=None).encode(x=x, y=y),
        marks.mark("rule", style="level", tooltip=None).encode(x=at),
        *(
            marks.where(f"datum.name === '{name}'")
            .mark("text", style="note", align=align, baseline="top", dx=dx, dy=dy, tooltip=None)
            .encode(x=at, y=value(0), text="name:N")
            for name, align, dx, dy in (("median", "right", -3, 0), ("mean", "left", 3, 0), ("99.9 %", "right", -3, 15))
        ),
    ]
    named = (("first", 1e-6), ("last", 10.0), ("top", 1.0))
    params = [param(name, start) for name, start in named]
    return with_dial(page, layers, *params, width=width, height=height)


def slices(page: PageData, name: str, labels: Sequence[str], *, title: str, shares: bool, height: int = 190) -> Spec:
    """KLD in each slice as a level; the base's in grey. `shares` writes how many of the tokens each one holds."""
    axis = {"title": title, "labelAngle": 0, "labelOverlap": "greedy", "grid": False}
    x = field("label:N", sort=list(labels), scale={"domain": list(labels)}, axis=axis)
    y = _free_nats()
    shown = rows_of(name)
    base = rows_of(f"{name}_base")
    tick: dict[str, Any] = {"orient": "horizontal", "thickness": 3}
    layers = [
        base.mark("tick", style="ghost-tick", tooltip=None, **tick).encode(x=x, y=y),
        shown.mark("tick", style="whole-tick", tooltip=WHOLE_ROW, **tick).encode(x=x, y=y),
    ]
    if shares:
        layers.append(
            shown.mark("text", style="note", baseline="top", dy=6, tooltip=None).encode(x=x, y=y, text="share:N")
        )
    return with_dial(page, layers, *_axis_params(), width="container", height=height)


def documents(page: PageData, *, height: int = 190) -> Spec:
    """A point a document, nearest first; the base's in grey."""
    axis = {"title": "document", "format": "d", "tickMinStep": 1, "grid": False, "labelOverlap": "greedy"}
    x = field("number:Q", scale={"zero": False, "nice": False, "padding": 8}, axis=axis)
    y = _free_nats()
    layers = [
        rows_of(name).mark("circle", style=style, size=40, opacity=1, tooltip=tip).encode(x=x, y=y)
        for name, style, tip in (("documents_base", "ghost-tick", None), ("documents", "whole-dot", WHOLE_ROW))
    ]
    return with_dial(page, layers, *_axis_params(), width="container", height=height)


def part_map(
    page: PageData, layers: Sequence[str], modules: Sequence[Module], top: float, *, tall: bool, step: int = 24
) -> Spec:
    """Layer x module, coloured by the KLD that this one matrix makes: from 0 to the largest of all ranks."""
    names = [module.short if tall else module.label for module in modules]
    every = next(n for n in (1, 2, 5, 10, 20, 50, 100, 1000) if len(layers) <= (60 if tall else 26) * n or n == 1000)
    by_layer = {"title": "layer", "values": list(layers[::every]), "labelAngle": 0, "labelOverlap": False}
    by_module = (
        {"title": None, "orient": "top", "labelAngle": -40, "labelLimit": 90, "labelOverlap": False}
        if tall
        else {"title": None, "labelLimit": 150, "labelOverlap": False}
    )
    layer = field("layer:O", sort=list(layers), scale={"domain": list(layers)}, axis=by_layer)
    module = field(f"{'short' if tall else 'label'}:N", sort=names, scale={"domain": names}, axis=by_module)
    stops = [top * i / (len(RAMP) - 1) for i in range(len(RAMP))]
    colour = field("kld:Q", scale={"domain": stops, "range": list(RAMP)}, legend=None)
    across, down = (module, layer) if tall else (layer, module)
    squares = rows_of("parts").mark("rect", style="square", tooltip=WHOLE_ROW).encode(x=across, y=down, color=colour)
    height = step * max(1, len(layers if tall else modules))
    return with_dial(page, [squares], width="container", height=height)


def part_bars(page: PageData, bars: int) -> Spec:
    """Each part's share of the KLD as a bar, and of the loss in the weights as a mark across it."""
    rows = rows_of("parts").where("datum.bar")
    y = field("name:N", sort=None, axis={"title": None, "labelLimit": 150, "labelOverlap": False})
    axis = {"title": "share of the sum over all parts", "labelExpr": _PERCENT, "tickCount": 5}
    layers = [
        rows.mark("bar", style="bar", height={"band": 0.6}, tooltip=WHOLE_ROW).encode(
            y=y, x=field("share_kld:Q", axis=axis)
        ),
        rows.mark("tick", style="whole-tick", thickness=2, tooltip=WHOLE_ROW).encode(
            y=y, x=field("share_lost:Q", axis=axis)
        ),
    ]
    return with_dial(page, layers, width="container", height=20 * max(bars, 1))


def part_scatter(page: PageData, top: float, *, height: int = 260) -> Spec:
    """What a part loses in the weights against the KLD that it makes, both as shares; on the line they are equal."""
    scale = {"type": "sqrt", "domain": [0, top * 1.05], "nice": False}
    x = field("share_lost:Q", scale=scale, axis={"title": "of the loss in the weights", **_SHARE_AXIS})
    y = field("share_kld:Q", scale=scale, axis={"title": "of the KLD", **_SHARE_AXIS})
    rows = rows_of("parts")
    ends = own_rows([{"share_lost": 0, "share_kld": 0}, {"share_lost": top, "share_kld": top}])
    named = rows.where("datum.named")
    half = top * 0.3
    layers = [
        ends.mark("line", style="level", tooltip=None).encode(x=x, y=y),
        rows.mark("circle", style="whole-dot", size=45, opacity=0.75, tooltip=WHOLE_ROW).encode(x=x, y=y),
        *(
            named.where(f"datum.share_lost {sign} {half}")
            .mark("text", style="note", align=align, dx=dx, limit=150, tooltip=None)
            .encode(x=x, y=y, text="name:N")
            for sign, align, dx in (("<", "left", 7), (">=", "right", -7))
        ),
    ]
    return with_dial(page, layers, width="container", height=height)


_SHARE_AXIS: dict[str, Any] = {"labelExpr": _PERCENT, "tickCount": 4, "labelOverlap": "greedy"}
