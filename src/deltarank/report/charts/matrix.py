"""The two charts of the detail panel: one matrix's loss against rank, and its spectrum."""

from __future__ import annotations

from deltarank.report.charts.vega import Spec, either, field, rows_of, value
from deltarank.report.charts.weights import WHOLE_ROW, dial_rule, lost_axis, rank_axis, with_dial
from deltarank.report.view.page import PageData


def curve(page: PageData, *, width: int | str = "container", height: int = 200) -> Spec:
    """Energy lost against rank for one matrix: the line between the asked ranks is measured too, not drawn by eye."""
    x, y = rank_axis(page), lost_axis()
    base = rows_of("curve")
    layers = [
        dial_rule(x),
        base.mark("line", style="whole", strokeWidth=2, clip=True, tooltip=None).encode(x=x, y=y),
        base.where("datum.asked")
        .mark("circle", style="whole-dot", size=50, opacity=1, tooltip=WHOLE_ROW)
        .encode(x=x, y=y),
    ]
    return with_dial(page, layers, width=width, height=height)


def spectrum(page: PageData, *, width: int | str = "container", height: int = 200) -> Spec:
    """Singular values of the delta, log-log, with the asked ranks, the noise edge and the rounding floor."""
    y_axis = {"title": "singular value", "format": ".0e", "tickCount": 4, "grid": False}
    x_axis = {"title": "singular value number", "format": "~s", "tickCount": 5, "grid": False, "labelOverlap": "greedy"}
    x = field("index:Q", scale={"type": "log", "nice": False}, axis=x_axis)
    y = field("value:Q", scale={"type": "log"}, axis=y_axis)
    base = rows_of("spectrum")
    ranks = rows_of("marks")
    levels = rows_of("levels")
    shown, at_dial = _only("datum.shown"), _only("datum.shown && datum.index === rank")
    layers = [
        ranks.mark("rule", style="mark", tooltip=None).encode(x=x, opacity=shown),
        ranks.mark("rule", style="dial", tooltip=None).encode(x=x, opacity=at_dial),
        levels.mark("rule", style="level", tooltip=None).encode(y=y, opacity=shown),
        # The higher level is named above its line and the lower one below: they are often close.
        *(
            levels.mark("text", style="note", align="left", baseline=baseline, dx=3, dy=dy, tooltip=None).encode(
                x=value(0), y=y, text=f"{side}:N"
            )
            for side, baseline, dy in (("above", "bottom", -2), ("below", "top", 3))
        ),
        base.mark("line", style="whole", strokeWidth=2, tooltip=None).encode(x=x, y=y),
        base.mark("circle", style="whole-dot", size=14, opacity=1, tooltip=WHOLE_ROW).encode(x=x, y=y),
    ]
    return with_dial(page, layers, width=width, height=height)


def _only(test: str) -> Spec:
    """Shows what passes. A filter could leave a layer without rows, and a log axis without ends."""
    return either(test, 1, 0)
