"""The frame of a picture: a title that says what to see in it, a subtitle with what it shows, and the tool's name."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from deltarank.report.charts.theme import config
from deltarank.report.charts.vega import SCHEMA, Spec

FONT_SIZE = 15
"""In points."""

_LINE = 76
"""Letters of a title line."""


def framed(body: Spec, title: str, subtitle: str, *, styles: Sequence[int] = (), params: Sequence[Spec] = ()) -> Spec:
    """A drawing under its title, over the tool's name."""
    signature = {
        "data": {"values": [{"text": "deltarank"}]},
        "width": 200,
        "height": 16,
        "mark": {"type": "text", "style": "note", "align": "left", "fontSize": FONT_SIZE - 1},
        "encoding": {"text": {"field": "text"}, "x": {"value": 0}},
    }
    return {
        "$schema": SCHEMA,
        "background": "#ffffff",
        "padding": 32,
        "title": {
            "text": textwrap.wrap(title, _LINE) or [title],
            "subtitle": textwrap.wrap(subtitle, _LINE + 24),
            "fontSize": 23,
            "lineHeight": 29,
            "subtitleFontSize": FONT_SIZE,
            "subtitleLineHeight": 21,
            "subtitlePadding": 10,
            "anchor": "start",
            "offset": 22,
        },
        "params": list(params),
        "vconcat": [body, signature],
        "config": {**config(styles, size=FONT_SIZE), "concat": {"spacing": 14}},
    }
