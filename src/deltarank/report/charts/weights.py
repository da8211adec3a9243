"""The charts, each defined once: the page shows them and drives their `rank`, and the PNGs are made from them.

A chart names its data and carries none. Whoever shows it puts in the rows of `_tables` and a config of `_theme`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deltarank.report.charts.theme import DASHES, RAMP, SHAPES, styled
from deltarank.report.charts.vega import Spec, chart, either, field, own_rows, param, rows_of, value
from deltarank.report.view.modules import Group, Module
from deltarank.report.view.page import PageData

WHOLE_ROW = {"content": "data"}
"""The page writes its own tooltips from the whole row; a PNG has none."""

_AT_RANK = "datum['lost_' + rank]"
_COSINE = f"{_AT_RANK} / (1 + sqrt(1 - {_AT_RANK}))"
_SHARE_LABEL = "format(100 * datum.value, 'd') + '\\u00a0%'"


def with_dial(page: PageData, layers: Sequence[Spec], *params: Spec, width: int | str, height: int) -> Spec:
    """Layers as a chart, with the dial as its first parameter."""
    return chart(layers, [param("rank", page.default_rank), *params], width=width, height=height)


def _ticks(count: int, *, most: int) -> int:
    """Every how manieth layer is labelled: 1, 2, 5, 10, ..."""
    return next(step for step in (1, 2, 5, 10, 20, 50, 100, 1000) if count <= most * step or step == 1000)


def heat_map(
    page: PageData, *, tall: bool, legend: bool = False, width: int | str = "container", step: int = 24
) -> Spec:
    """Layer x module, coloured by the energy lost at `rank`, 0 to 1 at every rank. `tall` runs layers down the page.

    Grey squares have no loss: "=" where finetuning changed nothing, "×" where nothing could be measured.
    The parameters `at_layer` and `at_module` outline one square.
    """
    layer, module = _heat_axes(page, tall)
    across, down = (module, layer) if tall else (layer, module)
    base = rows_of("cells").having(lost=_AT_RANK)
    known = base.where("isValid(datum.lost) && !datum.same").mark(
        "rect", style="square", cursor="pointer", tooltip=WHOLE_ROW
    )
    ghosts = base.where("!isValid(datum.lost) || datum.same").having(sign="datum.same ? '=' : '\u00d7'")
    layers = [
        known.encode(x=across, y=down, color=_loss_colour(legend)),
        ghosts.mark("rect", style="ghost", cursor="pointer", tooltip=WHOLE_ROW).encode(x=across, y=down),
        ghosts.mark("text", style="ghost-mark", tooltip=None).encode(x=across, y=down, text="sign:N"),
        base.where("datum.layer === at_layer && datum.module === at_module")
        .mark("rect", style="cursor", tooltip=None)
        .encode(x=across, y=down),
    ]
    places = [param("at_layer", ""), param("at_module", "")]
    return with_dial(
        page, layers, *places, width=width, height=step * max(1, len(page.layers if tall else page.modules))
    )


def _ends(numbers: Sequence[int]) -> list[int]:
    low, high = min(numbers, default=0), max(numbers, default=0)
    return [low, high if high > low else low + 1]


def _heat_axes(page: PageData, tall: bool) -> tuple[Spec, Spec]:
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
    return (
        field("layer:O", sort=list(page.layers), scale={"domain": list(page.layers)}, axis=axis),
        field(f"{'short' if tall else 'module'}:N", sort=shown, scale={"domain": shown}, axis=names),
    )


def _loss_colour(legend: bool) -> Spec:
    stops = [i / (len(RAMP) - 1) for i in range(len(RAMP))]
    shown = {
        "title": "energy lost (light = kept, dark = lost)",
        "orient": "top",
        "direction": "horizontal",
        "gradientLength": 360,
        "gradientThickness": 10,
        "values": [0, 0.25, 0.5, 0.75, 1],
        "labelExpr": _SHARE_LABEL,
        "titleLimit": 400,
    }
    return field("lost:Q", scale={"domain": stops, "range": list(RAMP)}, legend=shown if legend else None)


def _series_scales(modules: Sequence[Module]) -> dict[str, Spec]:
    """Colour, dash and shape by module; the colours themselves come from the config."""
    known = styled(modules)
    names = [module.label for module in known]
    numbers = [module.style or 0 for module in known]
    return {
        "color": field("module:N", scale={"domain": names, "range": "category"}, legend=None),
        # One name more than the others: legends of equal domains merge, and symbols outlined with dashes look torn.
        "strokeDash": field(
            "module:N",
            scale={"domain": [*names, ""], "range": [*(DASHES[n] for n in numbers), [1, 0]]},
            legend=None,
        ),
        "shape": field("module:N", scale={"domain": names, "range": [SHAPES[n] for n in numbers]}, legend=None),
    }


def rank_axis(page: PageData) -> Spec:
    """Ranks on a log-2 axis; those that vLLM loads have a line of their own."""
    legal = [rank for rank, is_legal in zip(page.ranks, page.legal, strict=True) if is_legal]
    test = f"indexof({legal}, datum.value) >= 0"
    axis = {
        "title": "LoRA rank",
        "values": list(page.ranks),
        "format": "d",
        "grid": True,
        "gridDash": either(test, [], [1, 4]),
        "labelOverlap": "greedy",
        "labelSeparation": 6,
        "labelFlush": False,
    }
    domain = [page.ranks[0], page.ranks[-1]] if len(page.ranks) > 1 else [page.ranks[0] / 2, page.ranks[0] * 2]
    return field("at:Q", scale={"type": "log", "base": 2, "domain": domain, "nice": False}, axis=axis)


def lost_axis(title: str = "energy lost") -> Spec:
    axis = {"title": title, "values": [0, 0.25, 0.5, 0.75, 1], "labelExpr": _SHARE_LABEL}
    return field("lost:Q", scale={"domain": [0, 1]}, axis=axis)


def dial_rule(x: Spec) -> Spec:
    """A line at the rank of the dial."""
    one = own_rows([{"one": 1}]).having(at="rank")
    return one.mark("rule", style="dial", tooltip=None).encode(x=x)


def loss_by_rank(page: PageData, *, width: int | str = "container", height: int = 320) -> Spec:
    """Energy lost against rank: a line a module, the whole of the run as a thick one, names at the right end."""
    x, y = rank_axis(page), lost_axis()
    base = rows_of("by_rank")
    lines = base.where("datum.kind === 'module'")
    rest = base.where("datum.kind === 'rest'")
    whole = base.where("datum.kind === 'whole'")
    series = _series_scales(page.modules)
    layers = [
        dial_rule(x),
        rest.mark("line", style="rest", tooltip=None).encode(x=x, y=y, detail="module:N"),
        lines.mark("line", strokeWidth=1.75, tooltip=None).encode(
            x=x, y=y, color=series["color"], strokeDash=series["strokeDash"]
        ),
        lines.mark("point", filled=True, size=38, opacity=1, tooltip=WHOLE_ROW).encode(
            x=x, y=y, color=series["color"], shape=series["shape"]
        ),
        whole.mark("line", style="whole", tooltip=None).encode(x=x, y=y),
        whole.mark("circle", style="whole-dot", size=60, opacity=1, tooltip=WHOLE_ROW).encode(x=x, y=y),
        *_end_labels(series["color"], y),
    ]
    return with_dial(page, layers, width=width, height=height)


def runs_by_rank(
    page: PageData, labels: Sequence[str], dashes: Sequence[int], *, width: int | str = "container", height: int = 320
) -> Spec:
    """Energy lost against rank: a thick line a run."""
    x, y = rank_axis(page), lost_axis()
    names = list(labels)
    colour = field("module:N", scale={"domain": names, "range": "category"}, legend=None)
    dash = field("module:N", scale={"domain": names, "range": [DASHES[n] for n in dashes]}, legend=None)
    shape = field("module:N", scale={"domain": names, "range": [SHAPES[n] for n in dashes]}, legend=None)
    base = rows_of("by_rank")
    layers = [
        dial_rule(x),
        base.mark("line", strokeWidth=3, tooltip=None).encode(x=x, y=y, color=colour, strokeDash=dash),
        base.mark("point", filled=True, size=70, opacity=1, tooltip=WHOLE_ROW).encode(
            x=x, y=y, color=colour, shape=shape
        ),
        *_end_labels(colour, y),
    ]
    return with_dial(page, layers, width=width, height=height)


def _end_labels(colour: Spec, y: Spec) -> list[Spec]:
    """Names beside the ends of their lines, moved apart, each with a thin line to its end."""
    base = rows_of("ends")
    named = base.where("datum.kind === 'module'")
    whole = base.where("datum.kind === 'whole'")
    text = {"align": "left", "dx": 22, "limit": 130, "tooltip": None}
    right = value("width")
    place = field("label_at:Q", scale={"domain": [0, 1]}, axis=y["axis"])
    return [
        base.mark("rule", style="leader", xOffset=5, x2Offset=18, tooltip=None).encode(
            x=right, x2=value("width"), y=y, y2="label_at:Q"
        ),
        named.mark("text", **text).encode(x=right, y=place, text="name:N", color=colour),
        whole.mark("text", style="whole-name", **text).encode(x=right, y=place, text="name:N"),
    ]


def by_layer(page: PageData, group: Group, *, top: float, width: int | str = "container", height: int = 220) -> Spec:
    """The article's chart: cosine distance per layer at `rank`, the modules of one group. `top` ends the axis."""
    modules = [module for module in page.modules if module.group is group]
    series = _series_scales(modules)
    numbers = [int(layer) for layer in page.layers if layer.isdecimal()]
    x = field(
        "number:Q",
        scale={"domain": _ends(numbers), "nice": False},
        axis={"title": "layer", "format": "d", "tickMinStep": 1, "grid": False, "labelOverlap": "greedy"},
    )
    y = field("cosine:Q", scale={"domain": [0, top]}, axis={"title": "cosine distance", "tickCount": 5})
    base = (
        rows_of("cells")
        .where(f"datum.group === '{group.value}' && isValid(datum.number)")
        .having(lost=_AT_RANK)
        .where("isValid(datum.lost)")
        .having(cosine=_COSINE)
    )
    known = base.where("datum.styled")
    rest = base.where("!datum.styled")
    legend = {"title": None, "orient": "top", "direction": "horizontal", "labelLimit": 160}
    shown = {channel: series[channel] | {"legend": legend} for channel in ("color", "shape")}
    layers = [
        rest.mark("line", style="rest", tooltip=None).encode(x=x, y=y, detail="module:N"),
        known.mark("line", strokeWidth=1.75, tooltip=None).encode(
            x=x, y=y, color=shown["color"], strokeDash=series["strokeDash"]
        ),
        known.mark("point", filled=True, size=34, opacity=1, cursor="pointer", tooltip=WHOLE_ROW).encode(
            x=x, y=y, **shown
        ),
    ]
    return with_dial(page, layers, width=width, height=height)
