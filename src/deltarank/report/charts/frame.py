"""What stands around a picture: a sentence that says what to see in it, what it shows, and the tool's name."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from deltarank.report.charts.theme import config
from deltarank.report.charts.vega import SCHEMA, Spec

SIZE = 15
"""Of the letters, in points."""

_LINE = 76
_PADDING = 32


def framed(body: Spec, sentence: str, about: str, *, styles: Sequence[int], parameters: Sequence[Spec] = ()) -> Spec:
    """A drawing under a sentence that says what to see in it, over the tool's name."""
    return {
        "$schema": SCHEMA,
        "background": "#ffffff",
        "padding": _PADDING,
        "title": _title(sentence, about),
        "params": list(parameters),
        "vconcat": [body, _signature()],
        "config": {**config(styles, size=SIZE), "concat": {"spacing": 14}},
    }


def _title(sentence: str, about: str) -> Spec:
    return {
        "text": textwrap.wrap(sentence, _LINE) or [sentence],
        "subtitle": textwrap.wrap(about, _LINE + 24),
        "fontSize": 23,
        "lineHeight": 29,
        "subtitleFontSize": SIZE,
        "subtitleLineHeight": 21,
        "subtitlePadding": 10,
        "anchor": "start",
        "offset": 22,
    }


def _signature() -> Spec:
    return {
        "data": {"values": [{"text": "deltarank"}]},
        "width": 200,
        "height": 16,
        "mark": {"type": "text", "style": "note", "align": "left", "fontSize": SIZE - 1},
        "encoding": {"text": {"field": "text"}, "x": {"value": 0}},
    }
