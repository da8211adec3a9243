"""The charts of outputs, defined as those of the weights are: they name their data and carry none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import altair as alt

from deltarank.report._charts import WHOLE_ROW, Chart, dial_rule, rank_axis, rank_param
from deltarank.report._data import PageData
from deltarank.report._modules import Module
from deltarank.report._outputs_rows import Span
from deltarank.report._theme import RAMP

MOST_TICKS = 9
_WITHIN = "datum.from >= first * 0.999 && datum.from < last"
_PERCENT = "format(100 * datum.value, '~r') + '\\u00a0%'"
_PLAIN = "format(datum.value, datum.value < 0.001 ? '.0e' : '~r')"


def kld_by_rank(page: PageData, span: Span, *, width: Any = "container", height: int = 320) -> Chart:
    """Mean KLD against rank with its interval, between the base and the quantised finetunes as lines across."""
    x, y = rank_axis(page), _nats(span, "nats per token")
    points = alt.Chart(alt.NamedData(name="points"))
    ranks = points.transform_filter("datum.kind === 'rank'")
    others = points.transform_filter("datum.kind !== 'rank'")
    levels = alt.Chart(alt.NamedData(name="levels"))
    right, text = alt.value("width"), {"align": "left", "dx": 22, "limit": 130, "tooltip": None}
    place = alt.Y("label_at:Q", scale=_log(span), axis=y["axis"])
    layers = [
        dial_rule(x),
        levels.mark_rule(style="level", tooltip=WHOLE_ROW).encode(y=y),
        levels.mark_rule(style="leader", xOffset=5, x2Offset=18, tooltip=None).encode(
            x=right, x2=alt.value("width"), y=y, y2="label_at:Q"
        ),
        levels.mark_text(style="note", **text).encode(x=right, y=place, text="name:N"),
        ranks.mark_area(style="spread", tooltip=None).encode(x=x, y=alt.Y("low:Q", scale=_log(span)), y2="high:Q"),
        ranks.mark_line(style="whole", tooltip=None).encode(x=x, y=y),
        ranks.mark_circle(style="whole-dot", size=60, opacity=1, tooltip=WHOLE_ROW).encode(x=x, y=y),
        others.mark_point(
            style="whole-dot", shape="diamond", filled=True, size=90, opacity=1, tooltip=WHOLE_ROW
        ).encode(x=x, y=y),
        *(
            others.mark_text(style=style, baseline="top", dy=8, limit=120, tooltip=None).encode(x=x, y=y, text="name:N")
            for style in ("halo", "note")
        ),
    ]
    return alt.layer(*layers).add_params(rank_param(page.default_rank)).properties(width=width, height=height)


def _log(span: Span) -> Any:
    return alt.Scale(type="log", domain=list(span), nice=False)


def _nats(span: Span, title: str | None) -> Any:
    axis = alt.Axis(title=title, values=ticks(span), labelExpr=_PLAIN, grid=True, labelOverlap="greedy")
    return alt.Y("kld:Q", scale=_log(span), axis=axis)


def _free_nats() -> Any:
    """An axis whose ends and ticks are parameters of the chart: they follow what is shown."""
    axis = alt.Axis(
        title="nats per token",
        values=alt.ExprRef("ticks"),
        labelExpr=_PLAIN,
        grid=True,
        labelOverlap="greedy",
    )
    ends: Any = [{"expr": "low"}, {"expr": "high"}]
    return alt.Y("kld:Q", scale=alt.Scale(type="log", domain=ends, nice=False), axis=axis)


def _axis_params() -> list[Any]:
    return [alt.param(name="low", value=0.01), alt.param(name="high", value=1.0), alt.param(name="ticks", value=[0.1])]


def ticks(span: Span) -> list[float]:
    """1, 2, 5, 10, ... within the span; powers of ten alone where that would be many."""
    powers = range(math.floor(math.log10(span[0])) - 1, math.ceil(math.log10(span[1])) + 1)
    for steps in ((1, 2, 5), (1,)):
        found = [float(f"{step}e{power}") for power in powers for step in steps]
        within = [value for value in found if span[0] * 0.999 <= value <= span[1] * 1.001]
        if len(within) <= MOST_TICKS:
            return within
    return within


def tokens(page: PageData, *, width: Any = "container", height: int = 190) -> Chart:
    """Histogram of token KLD; the base's as an outline, the mean and the tail as lines."""
    ends: Any = [{"expr": "first"}, {"expr": "last"}]
    heights: Any = [0, {"expr": "top"}]
    scale = alt.Scale(type="log", domain=ends, nice=False)
    axis = alt.Axis(title="nats at a token", labelExpr=_PLAIN, grid=False, tickCount=5, labelOverlap="greedy")
    x = alt.X("from:Q", scale=scale, axis=axis)
    share = alt.Axis(title="of the tokens", tickCount=3, labelExpr=_PERCENT)
    y = alt.Y("share:Q", scale=alt.Scale(domain=heights), axis=share)
    bars = alt.Chart(alt.NamedData(name="tokens")).transform_filter(_WITHIN)
    base = alt.Chart(alt.NamedData(name="tokens_base")).transform_filter(_WITHIN)
    marks = alt.Chart(alt.NamedData(name="marks"))
    at = alt.X("at:Q", scale=scale, axis=axis)
    layers = [
        bars.mark_bar(style="bar", tooltip=WHOLE_ROW).encode(x=x, x2="to:Q", y=y, y2=alt.datum(0)),
        base.mark_line(style="ghost-line", interpolate="step-after", tooltip=None).encode(x=x, y=y),
        marks.mark_rule(style="level", tooltip=None).encode(x=at),
        *(
            marks.transform_filter(f"datum.name === '{name}'")
            .mark_text(style="note", align=align, baseline="top", dx=dx, dy=dy, tooltip=None)
            .encode(x=at, y=alt.value(0), text="name:N")
            for name, align, dx, dy in (("median", "right", -3, 0), ("mean", "left", 3, 0), ("99.9 %", "right", -3, 15))
        ),
    ]
    named = (("first", 1e-6), ("last", 10.0), ("top", 1.0))
    params = [alt.param(name=name, value=value) for name, value in named]
    made = alt.layer(*layers).add_params(rank_param(page.default_rank), *params)
    return made.properties(width=width, height=height)


def slices(page: PageData, name: str, labels: Sequence[str], *, title: str, shares: bool, height: int = 190) -> Chart:
    """KLD in each slice as a level; the base's in grey. `shares` writes how many of the tokens each one holds."""
    axis = alt.Axis(title=title, labelAngle=0, labelOverlap="greedy", grid=False)
    x = alt.X("label:N", sort=list(labels), scale=alt.Scale(domain=list(labels)), axis=axis)
    y = _free_nats()
    shown = alt.Chart(alt.NamedData(name=name))
    base = alt.Chart(alt.NamedData(name=f"{name}_base"))
    tick: dict[str, Any] = {"orient": "horizontal", "thickness": 3}
    layers = [
        base.mark_tick(style="ghost-tick", tooltip=None, **tick).encode(x=x, y=y),
        shown.mark_tick(style="whole-tick", tooltip=WHOLE_ROW, **tick).encode(x=x, y=y),
    ]
    if shares:
        layers.append(
            shown.mark_text(style="note", baseline="top", dy=6, tooltip=None).encode(x=x, y=y, text="share:N")
        )
    chart = alt.layer(*layers).add_params(rank_param(page.default_rank), *_axis_params())
    return chart.properties(width="container", height=height)


def documents(page: PageData, *, height: int = 190) -> Chart:
    """A point a document, nearest first; the base's in grey."""
    axis = alt.Axis(title="document", format="d", tickMinStep=1, grid=False, labelOverlap="greedy")
    x = alt.X("number:Q", scale=alt.Scale(zero=False, nice=False, padding=8), axis=axis)
    y = _free_nats()
    layers = [
        alt.Chart(alt.NamedData(name=name)).mark_circle(style=style, size=40, opacity=1, tooltip=tip).encode(x=x, y=y)
        for name, style, tip in (("documents_base", "ghost-tick", None), ("documents", "whole-dot", WHOLE_ROW))
    ]
    made = alt.layer(*layers).add_params(rank_param(page.default_rank), *_axis_params())
    return made.properties(width="container", height=height)


def part_map(
    page: PageData, layers: Sequence[str], modules: Sequence[Module], top: float, *, tall: bool, step: int = 24
) -> Chart:
    """Layer x module, coloured by the KLD that this one matrix makes: from 0 to the largest of all ranks."""
    names = [module.short if tall else module.label for module in modules]
    every = next(n for n in (1, 2, 5, 10, 20, 50, 100, 1000) if len(layers) <= (60 if tall else 26) * n or n == 1000)
    by_layer = alt.Axis(title="layer", values=list(layers[::every]), labelAngle=0, labelOverlap=False)
    by_module = (
        alt.Axis(title=None, orient="top", labelAngle=-40, labelLimit=90, labelOverlap=False)
        if tall
        else alt.Axis(title=None, labelLimit=150, labelOverlap=False)
    )
    kinds = (alt.Y, alt.X) if tall else (alt.X, alt.Y)
    layer = kinds[0]("layer:O", sort=list(layers), scale=alt.Scale(domain=list(layers)), axis=by_layer)
    field = "short" if tall else "label"
    module = kinds[1](f"{field}:N", sort=names, scale=alt.Scale(domain=names), axis=by_module)
    stops = [top * i / (len(RAMP) - 1) for i in range(len(RAMP))]
    colour = alt.Color("kld:Q", scale=alt.Scale(domain=stops, range=list(RAMP)), legend=None)
    across, down = (module, layer) if tall else (layer, module)
    chart = alt.Chart(alt.NamedData(name="parts")).mark_rect(style="square", tooltip=WHOLE_ROW)
    made = chart.encode(x=across, y=down, color=colour).add_params(rank_param(page.default_rank))
    return made.properties(width="container", height=step * max(1, len(layers if tall else modules)))


def part_bars(page: PageData, bars: int) -> Chart:
    """Each part's share of the KLD as a bar, and of the loss in the weights as a mark across it."""
    rows = alt.Chart(alt.NamedData(name="parts")).transform_filter("datum.bar")
    y = alt.Y("name:N", sort=None, axis=alt.Axis(title=None, labelLimit=150, labelOverlap=False))
    axis = alt.Axis(title="share of the sum over all parts", labelExpr=_PERCENT, tickCount=5)
    layers = [
        rows.mark_bar(style="bar", height={"band": 0.6}, tooltip=WHOLE_ROW).encode(
            y=y, x=alt.X("share_kld:Q", axis=axis)
        ),
        rows.mark_tick(style="whole-tick", thickness=2, tooltip=WHOLE_ROW).encode(
            y=y, x=alt.X("share_lost:Q", axis=axis)
        ),
    ]
    made = alt.layer(*layers).add_params(rank_param(page.default_rank))
    return made.properties(width="container", height=20 * max(bars, 1))


def part_scatter(page: PageData, top: float, *, height: int = 260) -> Chart:
    """What a part loses in the weights against the KLD that it makes, both as shares; on the line they are equal."""
    scale = alt.Scale(type="sqrt", domain=[0, top * 1.05], nice=False)
    x = alt.X("share_lost:Q", scale=scale, axis=alt.Axis(title="of the loss in the weights", **_SHARE_AXIS))
    y = alt.Y("share_kld:Q", scale=scale, axis=alt.Axis(title="of the KLD", **_SHARE_AXIS))
    rows = alt.Chart(alt.NamedData(name="parts"))
    ends = alt.Chart(alt.InlineData(values=[{"share_lost": 0, "share_kld": 0}, {"share_lost": top, "share_kld": top}]))
    named = rows.transform_filter("datum.named")
    half = top * 0.3
    layers = [
        ends.mark_line(style="level", tooltip=None).encode(x=x, y=y),
        rows.mark_circle(style="whole-dot", size=45, opacity=0.75, tooltip=WHOLE_ROW).encode(x=x, y=y),
        *(
            named.transform_filter(f"datum.share_lost {sign} {half}")
            .mark_text(style="note", align=align, dx=dx, limit=150, tooltip=None)
            .encode(x=x, y=y, text="name:N")
            for sign, align, dx in (("<", "left", 7), (">=", "right", -7))
        ),
    ]
    made = alt.layer(*layers).add_params(rank_param(page.default_rank))
    return made.properties(width="container", height=height)


_SHARE_AXIS: dict[str, Any] = {"labelExpr": _PERCENT, "tickCount": 4, "labelOverlap": "greedy"}
