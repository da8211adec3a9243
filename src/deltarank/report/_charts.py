"""The charts, each defined once: the page shows them and drives their `rank`, and the PNGs are made from them.

A chart names its data and carries none. Whoever shows it puts in the rows of `_tables` and a config of `_theme`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import altair as alt
from altair.utils import schemapi

from deltarank.report._data import PageData
from deltarank.report._modules import Group, Module
from deltarank.report._theme import DASHES, RAMP, SHAPES, styled

Chart = Any  # altair's layered charts have no common static type worth naming

WHOLE_ROW = {"content": "data"}
"""The page writes its own tooltips from the whole row; a PNG has none."""

_AT_RANK = "datum['lost_' + rank]"
_COSINE = f"{_AT_RANK} / (1 + sqrt(1 - {_AT_RANK}))"
_SHARE_LABEL = "format(100 * datum.value, 'd') + '\\u00a0%'"


@contextmanager
def unchecked() -> Iterator[None]:
    """Charts are made without holding them against Vega-Lite's schema: that is a third of a page's time.

    The tests make every chart with the check.
    """
    with schemapi.debug_mode(False):
        yield


def plain_spec(chart: Chart) -> dict[str, Any]:
    """A chart as Vega-Lite's JSON."""
    spec: dict[str, Any] = chart.to_dict(validate=schemapi.DEBUG_MODE)
    return spec


def rank_param(rank: int) -> Any:
    """The dial, as a parameter of the chart."""
    return alt.param(name="rank", value=rank)


def _ticks(count: int, *, most: int) -> int:
    """Every how manieth layer is labelled: 1, 2, 5, 10, ..."""
    return next(step for step in (1, 2, 5, 10, 20, 50, 100, 1000) if count <= most * step or step == 1000)


def heat_map(page: PageData, *, tall: bool, legend: bool = False, width: Any = "container", step: int = 24) -> Chart:
    """Layer x module, coloured by the energy lost at `rank`, 0 to 1 at every rank. `tall` runs layers down the page.

    Grey squares have no loss: "=" where finetuning changed nothing, "×" where nothing could be measured.
    The parameters `at_layer` and `at_module` outline one square.
    """
    layer, module = _heat_axes(page, tall)
    across, down = (module, layer) if tall else (layer, module)
    base = alt.Chart(alt.NamedData(name="cells")).transform_calculate(lost=_AT_RANK)
    known = base.transform_filter("isValid(datum.lost) && !datum.same").mark_rect(
        style="square", cursor="pointer", tooltip=WHOLE_ROW
    )
    ghosts = base.transform_filter("!isValid(datum.lost) || datum.same").transform_calculate(
        sign="datum.same ? '=' : '\u00d7'"
    )
    layers = [
        known.encode(x=across, y=down, color=_loss_colour(legend)),
        ghosts.mark_rect(style="ghost", cursor="pointer", tooltip=WHOLE_ROW).encode(x=across, y=down),
        ghosts.mark_text(style="ghost-mark", tooltip=None).encode(x=across, y=down, text="sign:N"),
        base.transform_filter("datum.layer === at_layer && datum.module === at_module")
        .mark_rect(style="cursor", tooltip=None)
        .encode(x=across, y=down),
    ]
    places = [alt.param(name="at_layer", value=""), alt.param(name="at_module", value="")]
    chart = alt.layer(*layers).add_params(rank_param(page.default_rank), *places)
    return chart.properties(width=width, height=step * max(1, len(page.layers if tall else page.modules)))


def _ends(numbers: Sequence[int]) -> list[int]:
    low, high = min(numbers, default=0), max(numbers, default=0)
    return [low, high if high > low else low + 1]


def _heat_axes(page: PageData, tall: bool) -> tuple[Any, Any]:
    step = _ticks(len(page.layers), most=60 if tall else 26)
    axis = {
        "title": "layer",
        "values": list(page.layers[::step]),
        "labelAngle": 0,
        "labelOverlap": False,
        **({} if tall else {"titleAnchor": "start"}),
    }
    names: dict[str, Any] = {"title": None, "labelLimit": 150, "labelOverlap": False}
    if tall:
        names |= {"orient": "top", "labelAngle": -40, "labelLimit": 90}
    shown = [module.short if tall else module.label for module in page.modules]
    kind = (alt.Y, alt.X) if tall else (alt.X, alt.Y)
    return (
        kind[0]("layer:O", sort=list(page.layers), scale=alt.Scale(domain=list(page.layers)), axis=alt.Axis(**axis)),
        kind[1](
            f"{'short' if tall else 'module'}:N", sort=shown, scale=alt.Scale(domain=shown), axis=alt.Axis(**names)
        ),
    )


def _loss_colour(legend: bool) -> Any:
    stops = [i / (len(RAMP) - 1) for i in range(len(RAMP))]
    shown = alt.Legend(
        title="energy lost (light = kept, dark = lost)",
        orient="top",
        direction="horizontal",
        gradientLength=360,
        gradientThickness=10,
        values=[0, 0.25, 0.5, 0.75, 1],
        labelExpr=_SHARE_LABEL,
        titleLimit=400,
    )
    return alt.Color("lost:Q", scale=alt.Scale(domain=stops, range=list(RAMP)), legend=shown if legend else None)


def _series_scales(modules: Sequence[Module]) -> dict[str, Any]:
    """Colour, dash and shape by module; the colours themselves come from the config."""
    known = styled(modules)
    names = [module.label for module in known]
    numbers = [module.style or 0 for module in known]
    return {
        "color": alt.Color("module:N", scale=alt.Scale(domain=names, range="category"), legend=None),
        # One name more than the others: legends of equal domains merge, and symbols outlined with dashes look torn.
        "strokeDash": alt.StrokeDash(
            "module:N",
            scale=alt.Scale(domain=[*names, ""], range=[*(DASHES[n] for n in numbers), [1, 0]]),
            legend=None,
        ),
        "shape": alt.Shape("module:N", scale=alt.Scale(domain=names, range=[SHAPES[n] for n in numbers]), legend=None),
    }


def rank_axis(page: PageData) -> Any:
    """Ranks on a log-2 axis; those that vLLM loads have a line of their own."""
    legal = [rank for rank, is_legal in zip(page.ranks, page.legal, strict=True) if is_legal]
    test = f"indexof({legal}, datum.value) >= 0"
    axis = alt.Axis(
        title="LoRA rank",
        values=list(page.ranks),
        format="d",
        grid=True,
        gridDash=alt.condition(test, alt.value([]), alt.value([1, 4])),
        labelOverlap="greedy",
        labelSeparation=6,
        labelFlush=False,
    )
    domain = [page.ranks[0], page.ranks[-1]] if len(page.ranks) > 1 else [page.ranks[0] / 2, page.ranks[0] * 2]
    return alt.X("at:Q", scale=alt.Scale(type="log", base=2, domain=domain, nice=False), axis=axis)


def lost_axis(title: str = "energy lost") -> Any:
    axis = alt.Axis(title=title, values=[0, 0.25, 0.5, 0.75, 1], labelExpr=_SHARE_LABEL)
    return alt.Y("lost:Q", scale=alt.Scale(domain=[0, 1]), axis=axis)


def dial_rule(x: Any) -> Chart:
    """A line at the rank of the dial."""
    one = alt.Chart(alt.InlineData(values=[{"one": 1}])).transform_calculate(at="rank")
    return one.mark_rule(style="dial", tooltip=None).encode(x=x)


def loss_by_rank(page: PageData, *, width: Any = "container", height: int = 320) -> Chart:
    """Energy lost against rank: a line a module, the whole of the run as a thick one, names at the right end."""
    x, y = rank_axis(page), lost_axis()
    base = alt.Chart(alt.NamedData(name="by_rank"))
    lines = base.transform_filter("datum.kind === 'module'")
    rest = base.transform_filter("datum.kind === 'rest'")
    whole = base.transform_filter("datum.kind === 'whole'")
    series = _series_scales(page.modules)
    layers = [
        dial_rule(x),
        rest.mark_line(style="rest", tooltip=None).encode(x=x, y=y, detail="module:N"),
        lines.mark_line(strokeWidth=1.75, tooltip=None).encode(
            x=x, y=y, color=series["color"], strokeDash=series["strokeDash"]
        ),
        lines.mark_point(filled=True, size=38, opacity=1, tooltip=WHOLE_ROW).encode(
            x=x, y=y, color=series["color"], shape=series["shape"]
        ),
        whole.mark_line(style="whole", tooltip=None).encode(x=x, y=y),
        whole.mark_circle(style="whole-dot", size=60, opacity=1, tooltip=WHOLE_ROW).encode(x=x, y=y),
        *_end_labels(series["color"], y),
    ]
    chart = alt.layer(*layers).add_params(rank_param(page.default_rank))
    return chart.properties(width=width, height=height)


def runs_by_rank(
    page: PageData, labels: Sequence[str], dashes: Sequence[int], *, width: Any = "container", height: int = 320
) -> Chart:
    """Energy lost against rank: a thick line a run."""
    x, y = rank_axis(page), lost_axis()
    names = list(labels)
    colour = alt.Color("module:N", scale=alt.Scale(domain=names, range="category"), legend=None)
    dash = alt.StrokeDash("module:N", scale=alt.Scale(domain=names, range=[DASHES[n] for n in dashes]), legend=None)
    shape = alt.Shape("module:N", scale=alt.Scale(domain=names, range=[SHAPES[n] for n in dashes]), legend=None)
    base = alt.Chart(alt.NamedData(name="by_rank"))
    layers = [
        dial_rule(x),
        base.mark_line(strokeWidth=3, tooltip=None).encode(x=x, y=y, color=colour, strokeDash=dash),
        base.mark_point(filled=True, size=70, opacity=1, tooltip=WHOLE_ROW).encode(x=x, y=y, color=colour, shape=shape),
        *_end_labels(colour, y),
    ]
    chart = alt.layer(*layers).add_params(rank_param(page.default_rank))
    return chart.properties(width=width, height=height)


def _end_labels(colour: Any, y: Any) -> list[Chart]:
    """Names beside the ends of their lines, moved apart, each with a thin line to its end."""
    base = alt.Chart(alt.NamedData(name="ends"))
    named = base.transform_filter("datum.kind === 'module'")
    whole = base.transform_filter("datum.kind === 'whole'")
    text = {"align": "left", "dx": 22, "limit": 130, "tooltip": None}
    right = alt.value("width")
    place = alt.Y("label_at:Q", scale=alt.Scale(domain=[0, 1]), axis=y["axis"])
    return [
        base.mark_rule(style="leader", xOffset=5, x2Offset=18, tooltip=None).encode(
            x=right, x2=alt.value("width"), y=y, y2="label_at:Q"
        ),
        named.mark_text(**text).encode(x=right, y=place, text="name:N", color=colour),
        whole.mark_text(style="whole-name", **text).encode(x=right, y=place, text="name:N"),
    ]


def by_layer(page: PageData, group: Group, *, top: float, width: Any = "container", height: int = 220) -> Chart:
    """The article's chart: cosine distance per layer at `rank`, the modules of one group. `top` ends the axis."""
    modules = [module for module in page.modules if module.group is group]
    series = _series_scales(modules)
    numbers = [int(layer) for layer in page.layers if layer.isdecimal()]
    x = alt.X(
        "number:Q",
        scale=alt.Scale(domain=_ends(numbers), nice=False),
        axis=alt.Axis(title="layer", format="d", tickMinStep=1, grid=False, labelOverlap="greedy"),
    )
    y = alt.Y("cosine:Q", scale=alt.Scale(domain=[0, top]), axis=alt.Axis(title="cosine distance", tickCount=5))
    base = (
        alt.Chart(alt.NamedData(name="cells"))
        .transform_filter(f"datum.group === '{group.value}' && isValid(datum.number)")
        .transform_calculate(lost=_AT_RANK)
        .transform_filter("isValid(datum.lost)")
        .transform_calculate(cosine=_COSINE)
    )
    known = base.transform_filter("datum.styled")
    rest = base.transform_filter("!datum.styled")
    legend = alt.Legend(title=None, orient="top", direction="horizontal", labelLimit=160)
    shown = {channel: series[channel].copy() for channel in ("color", "shape")}
    for channel in shown.values():
        channel["legend"] = legend
    layers = [
        rest.mark_line(style="rest", tooltip=None).encode(x=x, y=y, detail="module:N"),
        known.mark_line(strokeWidth=1.75, tooltip=None).encode(
            x=x, y=y, color=shown["color"], strokeDash=series["strokeDash"]
        ),
        known.mark_point(filled=True, size=34, opacity=1, cursor="pointer", tooltip=WHOLE_ROW).encode(
            x=x, y=y, **shown
        ),
    ]
    return alt.layer(*layers).add_params(rank_param(page.default_rank)).properties(width=width, height=height)
