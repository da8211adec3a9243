"""The two charts of the detail panel: one matrix's loss against rank, and its spectrum."""

from __future__ import annotations

from typing import Any

import altair as alt

from deltarank.report._charts import WHOLE_ROW, Chart, dial_rule, lost_axis, rank_axis, rank_param
from deltarank.report._data import PageData


def curve(page: PageData, *, width: Any = "container", height: int = 200) -> Chart:
    """Energy lost against rank for one matrix: the line between the asked ranks is measured too, not drawn by eye."""
    x, y = rank_axis(page), lost_axis()
    base = alt.Chart(alt.NamedData(name="curve"))
    layers = [
        dial_rule(x),
        base.mark_line(style="whole", strokeWidth=2, clip=True, tooltip=None).encode(x=x, y=y),
        base.transform_filter("datum.asked")
        .mark_circle(style="whole-dot", size=50, opacity=1, tooltip=WHOLE_ROW)
        .encode(x=x, y=y),
    ]
    return alt.layer(*layers).add_params(rank_param(page.default_rank)).properties(width=width, height=height)


def spectrum(page: PageData, *, width: Any = "container", height: int = 200) -> Chart:
    """Singular values of the delta, log-log, with the asked ranks, the noise edge and the rounding floor."""
    y_axis = alt.Axis(title="singular value", format=".0e", tickCount=4, grid=False)
    x_axis = alt.Axis(title="singular value number", format="~s", tickCount=5, grid=False, labelOverlap="greedy")
    x = alt.X("index:Q", scale=alt.Scale(type="log", nice=False), axis=x_axis)
    y = alt.Y("value:Q", scale=alt.Scale(type="log"), axis=y_axis)
    base = alt.Chart(alt.NamedData(name="spectrum"))
    ranks = alt.Chart(alt.NamedData(name="marks"))
    levels = alt.Chart(alt.NamedData(name="levels"))
    shown, at_dial = _only("datum.shown"), _only("datum.shown && datum.index === rank")
    layers = [
        ranks.mark_rule(style="mark", tooltip=None).encode(x=x, opacity=shown),
        ranks.mark_rule(style="dial", tooltip=None).encode(x=x, opacity=at_dial),
        levels.mark_rule(style="level", tooltip=None).encode(y=y, opacity=shown),
        # The higher level is named above its line and the lower one below: they are often close.
        *(
            levels.mark_text(style="note", align="left", baseline=baseline, dx=3, dy=dy, tooltip=None).encode(
                x=alt.value(0), y=y, text=f"{side}:N"
            )
            for side, baseline, dy in (("above", "bottom", -2), ("below", "top", 3))
        ),
        base.mark_line(style="whole", strokeWidth=2, tooltip=None).encode(x=x, y=y),
        base.mark_circle(style="whole-dot", size=14, opacity=1, tooltip=WHOLE_ROW).encode(x=x, y=y),
    ]
    return alt.layer(*layers).add_params(rank_param(page.default_rank)).properties(width=width, height=height)


def _only(test: str) -> Any:
    """Shows what passes. A filter could leave a layer without rows, and a log axis without ends."""
    return alt.condition(test, alt.value(1), alt.value(0))
