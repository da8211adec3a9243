"""The two charts of one matrix: its loss against rank, and its spectrum."""

from __future__ import annotations

from deltarank.report.charts.building_blocks import (
    ROW_TOOLTIP,
    chart_at_rank,
    rank_axis,
    selected_rank_line,
)
from deltarank.report.charts.vega import Spec, either, field, rows_of, value
from deltarank.report.charts.weights import lost_axis
from deltarank.report.view.page import PageData


def loss_chart(page: PageData) -> Spec:
    """Energy lost against rank. The line between the ranks of the page is measured, too."""
    x, y = rank_axis(page), lost_axis()
    points = rows_of("curve")
    layers = [
        selected_rank_line(x),
        points.mark("line", style="primary-line", strokeWidth=2, clip=True, tooltip=None).encode(x=x, y=y),
        points.where("datum.is_page_rank")
        .mark("circle", style="primary-dot", size=50, opacity=1, tooltip=ROW_TOOLTIP)
        .encode(x=x, y=y),
    ]
    return chart_at_rank(page, layers, height=200)


def spectrum_chart(page: PageData) -> Spec:
    """The singular values of the delta, log-log, with the ranks, the noise edge and the rounding floor as lines."""
    # A format, not an expression: so Vega labels only the powers of ten where there is little room.
    y_axis = {"title": "singular value", "format": "~g", "tickCount": 4, "grid": False}
    x_axis = {"title": "singular value number", "format": ",", "tickCount": 5, "grid": False, "labelOverlap": "greedy"}
    x = field("index:Q", scale={"type": "log", "nice": False}, axis=x_axis)
    y = field("value:Q", scale={"type": "log"}, axis=y_axis)
    values, ranks, references = rows_of("spectrum"), rows_of("rank_marks"), rows_of("references")
    # Rows are hidden, not filtered out: a log axis without rows has no domain.
    is_shown = either("datum.is_shown", 1, 0)
    is_selected = either("datum.is_shown && datum.index === rank", 1, 0)
    layers = [
        ranks.mark("rule", style="rank-mark", tooltip=None).encode(x=x, opacity=is_shown),
        ranks.mark("rule", style="selected-rank", tooltip=None).encode(x=x, opacity=is_selected),
        references.mark("rule", style="reference", tooltip=None).encode(y=y, opacity=is_shown),
        # The higher line has its name above and the lower one below: they are often close.
        *(
            references.mark("text", style="note", align="left", baseline=baseline, dx=3, dy=dy, tooltip=None).encode(
                x=value(0), y=y, text=f"{column}:N"
            )
            for column, baseline, dy in (("name_above", "bottom", -2), ("name_below", "top", 3))
        ),
        values.mark("line", style="primary-line", strokeWidth=2, tooltip=None).encode(x=x, y=y),
        values.mark("circle", style="primary-dot", size=14, opacity=1, tooltip=ROW_TOOLTIP).encode(x=x, y=y),
    ]
    return chart_at_rank(page, layers, height=200)
