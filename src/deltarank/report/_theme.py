"""Colours and type of the charts, light and dark. The page's stylesheet names the same inks.

Losses run along one ramp, light = kept, dark = lost. Its lightness falls evenly from 0.955 to 0.25 (OKLCH) while the
hue turns from cream over coral to plum, so people who see no hue still read it, and so does a grey printer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deltarank.report._modules import Module

RAMP = ("#f7efe0", "#f4d4ac", "#f5b57c", "#ef8d5d", "#e46250", "#ba425c", "#8d285e", "#5c1d53", "#30113d")

FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, "Liberation Sans", sans-serif'

# Attention is cool, MLP warm, the rest green; a style has its colour, dash and shape everywhere on the page.
_LIGHT = ("#1d5fa8", "#0b8a8f", "#6b4fb0", "#5b93c9", "#d9541e", "#b8860b", "#b01b50", "#8a4b2a", "#4b7f1f")
_DARK = ("#6ea8ea", "#3cc0bd", "#ab93ee", "#a5cdf5", "#ff8a55", "#e6bb45", "#f56f9b", "#d0976f", "#96c763")
DASHES = ([1, 0], [6, 2], [2, 2], [8, 2, 2, 2], [1, 0], [6, 2], [2, 2], [8, 2, 2, 2], [4, 4])
SHAPES = (
    "circle",
    "square",
    "triangle-up",
    "diamond",
    "circle",
    "square",
    "triangle-up",
    "diamond",
    "triangle-down",
)

_INKS = {
    False: {"ink": "#1d1a20", "muted": "#6a6470", "line": "#e4dfe2", "ghost": "#d5d0d4", "grid": "#ffffff"},
    True: {"ink": "#ece8ee", "muted": "#a59eab", "line": "#37323c", "ghost": "#4a454f", "grid": "#15131a"},
}


def palette(styles: Sequence[int], *, dark: bool) -> list[str]:
    """The colours of these styles, in this order."""
    colours = _DARK if dark else _LIGHT
    return [colours[style % len(colours)] for style in styles]


def run_styles(runs: int) -> list[int]:
    """Styles for whole runs: neighbours differ in hue as well as in dash."""
    order = (0, 4, 8, 2, 5, 1, 6, 3, 7)
    return [order[i % len(order)] for i in range(runs)]


def styled(modules: Sequence[Module]) -> list[Module]:
    """The modules that have a colour of their own."""
    return [module for module in modules if module.style is not None]


def config(styles: Sequence[int], *, dark: bool = False, size: int = 12) -> dict[str, Any]:
    """A Vega-Lite config. `styles` are those of the chart's series, in the order of its colour domain."""
    inks = _INKS[dark]
    return {
        "background": None,
        "font": FONT,
        "view": {"stroke": None},
        "range": {"category": palette(styles, dark=dark)},
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
        "square": {"stroke": inks["grid"], "strokeWidth": 1},
        "ghost": {"color": inks["ghost"], "stroke": inks["grid"], "strokeWidth": 1},
        "ghost-mark": {"color": inks["muted"], "fontSize": size - 2},
        "cursor": {"stroke": inks["ink"], "strokeWidth": 2, "color": "transparent"},
        "dial": {"color": inks["ink"], "strokeWidth": 1},
        "mark": {"color": inks["line"], "strokeWidth": 1},
        "level": {"color": inks["muted"], "strokeWidth": 1, "strokeDash": [3, 3]},
        "note": {"color": inks["muted"], "fontSize": size},
        "whole": {"color": inks["ink"], "strokeWidth": 3},
        "whole-dot": {"color": inks["ink"]},
        "whole-name": {"color": inks["ink"], "fontSize": size, "fontWeight": 600},
        "rest": {"color": inks["ghost"], "strokeWidth": 1},
        "leader": {"color": inks["line"], "strokeWidth": 1},
    }
