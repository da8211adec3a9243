"""Colours and type of the charts.

Pictures have the colours below. The page draws with variables of its stylesheet, which sets them to the same colours in
light mode and on paper, and to others in dark mode: a chart follows without being drawn again.

Losses have one ramp, light = kept, dark = lost. Its lightness falls evenly from 0.955 to 0.25 (OKLCH) while the hue
goes from cream to coral to plum, so it can be read without hue, and in grey print.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deltarank.report.view.modules import Module

RAMP = ("#f7efe0", "#f4d4ac", "#f5b57c", "#ef8d5d", "#e46250", "#ba425c", "#8d285e", "#5c1d53", "#30113d")

FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, "Liberation Sans", sans-serif'

# Attention is cool, MLP warm, the rest green. A style is one colour, dash and shape everywhere on the page. The colours
# also differ for people who confuse red and green, and have the contrast of text (tests/unit/report/test_colours.py).
COLOURS = ("#1044a6", "#084f6c", "#7d50dd", "#2a77bf", "#c24b30", "#996900", "#cc105a", "#661e10", "#416108")
DASHES = ([1, 0], [6, 2], [2, 2], [8, 2, 2, 2], [1, 0], [6, 2], [2, 2], [8, 2, 2, 2], [4, 4])
_SHAPES = ("circle", "square", "triangle-up", "diamond")
SHAPES = (*_SHAPES, *_SHAPES, "triangle-down")

INKS = {"ink": "#1d1a20", "muted": "#6a6470", "line": "#e4dfe2", "ghost": "#d5d0d4", "paper": "#ffffff"}
_VARIABLES = {name: f"var(--{name})" for name in INKS}


def palette(styles: Sequence[int], *, page: bool = False) -> list[str]:
    """The colours of these styles; the page's variables if `page`."""
    numbers = [style % len(COLOURS) for style in styles]
    return [f"var(--series-{number})" if page else COLOURS[number] for number in numbers]


def run_styles(runs: int) -> list[int]:
    """Styles for whole runs: neighbours differ in hue and in dash."""
    order = (0, 4, 8, 2, 5, 1, 6, 3, 7)
    return [order[i % len(order)] for i in range(runs)]


def modules_with_style(modules: Sequence[Module]) -> list[Module]:
    """The modules that are not drawn in grey."""
    return [module for module in modules if module.style is not None]


def config(styles: Sequence[int], *, page: bool = False, size: int = 12) -> dict[str, Any]:
    """A Vega-Lite config. `styles` are those of the chart's series, in the order of their names."""
    inks = _VARIABLES if page else INKS
    return {
        "background": None,
        "font": FONT,
        "view": {"stroke": None},
        "range": {"category": palette(styles, page=page)},
        "axis": _axis(inks, size),
        "legend": _legend(inks, size),
        "title": {"color": inks["ink"], "subtitleColor": inks["muted"], "anchor": "start", "fontWeight": 600},
        "style": _styles(inks, size),
        "rule": {"color": inks["muted"]},
        "text": {"color": inks["ink"], "fontSize": size},
    }


def _axis(inks: dict[str, str], size: int) -> dict[str, Any]:
    return {
        "labelColor": inks["muted"],
        "titleColor": inks["muted"],
        "gridColor": inks["line"],
        "domainColor": inks["line"],
        "tickColor": inks["line"],
        "labelFontSize": size,
        "titleFontSize": size,
        "titleFontWeight": "normal",
        "labelPadding": 5,
        "domain": False,
        "ticks": False,
    }


def _legend(inks: dict[str, str], size: int) -> dict[str, Any]:
    return {
        "labelColor": inks["ink"],
        "titleColor": inks["muted"],
        "labelFontSize": size,
        "titleFontSize": size,
        "titleFontWeight": "normal",
        "symbolStrokeWidth": 2,
        "symbolSize": 60,
        "columns": 4,
    }


def _styles(inks: dict[str, str], size: int) -> dict[str, Any]:
    return {
        "cell": {"stroke": None},
        "square": {"stroke": inks["paper"], "strokeWidth": 1},
        "tile": {"strokeWidth": 0},
        "ghost": {"color": inks["ghost"], "stroke": inks["paper"], "strokeWidth": 1},
        "ghost-mark": {"color": inks["muted"], "fontSize": size - 2},
        "cursor": {"stroke": inks["ink"], "strokeWidth": 2, "color": "transparent"},
        "selected-rank": {"color": inks["ink"], "strokeWidth": 1},
        "rank-mark": {"color": inks["line"], "strokeWidth": 1},
        "reference": {"color": inks["muted"], "strokeWidth": 1, "strokeDash": [3, 3]},
        "note": {"color": inks["muted"], "fontSize": size},
        "primary-line": {"color": inks["ink"], "strokeWidth": 3},
        "primary-dot": {"color": inks["ink"]},
        "primary-name": {"color": inks["ink"], "fontSize": size, "fontWeight": 600},
        "rest": {"color": inks["ghost"], "strokeWidth": 1},
        "leader": {"color": inks["line"], "strokeWidth": 1},
        "spread": {"color": inks["ink"], "opacity": 0.12},
        "bar": {"color": inks["muted"]},
        "ghost-line": {"color": inks["ink"], "strokeWidth": 1, "strokeDash": [2, 2]},
        "ghost-tick": {"color": inks["ghost"]},
        "primary-tick": {"color": inks["ink"]},
    }
