"""Parts that the charts of weights and outputs share.

A chart names its datasets and has no data of its own. The page or a picture supplies the rows of `view.chart_rows` and
`view.divergence_rows`, and a config of `charts.theme`.
"""

from __future__ import annotations

from collections.abc import Sequence

from deltarank.report.charts.theme import RAMP
from deltarank.report.charts.vega import Mark, Rows, Spec, chart, either, field, own_rows, param, value
from deltarank.report.view.modules import Module
from deltarank.report.view.page import PageData

ROW_TOOLTIP = {"content": "data"}
"""The page writes its own tooltips from the whole row; a picture has none."""

_MAP_WIDTH = 900
_SMALLEST_SQUARE = 7

NUMBER_LABEL = "format(datum.value, datum.value < 0.001 ? '.0e' : datum.value < 1000 ? '~r' : ',')"
"""As `results.figure`."""

PERCENT_LABEL = "format(100 * datum.value, '~r') + '\\u00a0%'"


def chart_at_rank(page: PageData, layers: Sequence[Spec], *params: Spec, height: int) -> Spec:
    """Layers as a chart whose first parameter is the selected rank. It is as wide as its place on the page."""
    return chart(layers, [param("rank", page.default_rank), *params], width="container", height=height)


def rank_axis(page: PageData) -> Spec:
    """Ranks on a log-2 axis, with solid grid lines for the sizes of vLLM's slots."""
    servable = [rank for rank, is_servable in zip(page.ranks, page.servable, strict=True) if is_servable]
    axis = {
        "title": "LoRA rank",
        "values": list(page.ranks),
        "format": "d",
        "grid": True,
        "gridDash": either(f"indexof({servable}, datum.value) >= 0", [], [1, 4]),
        "labelOverlap": "greedy",
        "labelSeparation": 6,
        "labelFlush": False,
    }
    first, last = page.ranks[0], page.ranks[-1]
    domain = [first, last] if first < last else [first / 2, first * 2]
    return field("rank:Q", scale={"type": "log", "base": 2, "domain": domain, "nice": False}, axis=axis)


def selected_rank_line(x: Spec) -> Spec:
    """A vertical line at the selected rank."""
    row = own_rows([{"row": 1}]).having(rank="rank")
    return row.mark("rule", style="selected-rank", tooltip=None).encode(x=x)


def label_leaders(rows: Rows, y: Spec) -> Spec:
    """At the right end, a thin line from each row's `y` to the height of its label."""
    leader = rows.mark("rule", style="leader", xOffset=5, x2Offset=18, tooltip=None)
    return leader.encode(x=value("width"), x2=value("width"), y=y, y2="label_y:Q")


def right_labels(
    rows: Rows, y: Spec, *, style: str | None = None, name: str = "name", limit: int = 130, **channels: Spec
) -> Spec:
    """The names of the rows at the right end, at the heights of their labels.

    Args:
        name: the column with the names.
        limit: the most room for a name, in pixels.
    """
    look = {"style": style} if style else {}
    labels: Mark = rows.mark("text", align="left", dx=22, limit=limit, tooltip=None, **look)
    label_y = field("label_y:Q", scale=y["scale"], axis=y["axis"])
    return labels.encode(x=value("width"), y=label_y, text=f"{name}:N", **channels)


def map_axes(layers: Sequence[str], modules: Sequence[Module], *, height: int, tall: bool) -> tuple[Spec, Spec]:
    """The x and y axes of a map of layers and modules. `tall` has the layers on the y axis, and short labels."""
    most = min(60, height // 20) if tall else 26
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 1000) if len(layers) <= most * step or step == 1000)
    layer_axis: Spec = {"title": "layer", "values": list(layers[::step]), "labelAngle": 0, "labelOverlap": False}
    module_axis: Spec = {"title": None, "labelLimit": 150, "labelOverlap": False}
    if tall:
        module_axis |= {"orient": "top", "labelAngle": -40, "labelLimit": 90}
    else:
        layer_axis["titleAnchor"] = "start"
    labels = [module.short_label if tall else module.label for module in modules]
    layer = field("layer:O", sort=list(layers), scale={"domain": list(layers)}, axis=layer_axis)
    module = field(f"{'short_module' if tall else 'module'}:N", sort=labels, scale={"domain": labels}, axis=module_axis)
    return (module, layer) if tall else (layer, module)


def map_height(layers: Sequence[str], modules: Sequence[Module], *, tall: bool) -> int:
    """The height of a map on the page."""
    step = 24 if not tall else 22 if len(layers) <= 24 else 16 if len(layers) <= 48 else 12
    return step * max(1, len(layers if tall else modules))


def cell_style(layers: Sequence[str], height: int, *, tall: bool) -> str:
    """Cells have lines between them, unless they are so small that little else would be left."""
    side = height / max(1, len(layers)) if tall else _MAP_WIDTH / max(1, len(layers))
    return "square" if side >= _SMALLEST_SQUARE else "tile"


def ramp_colour(column: str, top: float, *, legend: Spec | None = None) -> Spec:
    """The ramp from 0 to `top`."""
    stops = [top * i / (len(RAMP) - 1) for i in range(len(RAMP))]
    return field(f"{column}:Q", scale={"domain": stops, "range": list(RAMP)}, legend=legend)
