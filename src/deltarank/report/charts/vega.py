"""The part of Vega-Lite's grammar that the charts use, as plain dictionaries.

    bars = rows_of("tokens").where("datum.share > 0")
    chart([bars.mark("bar", style="bar").encode(x="from:Q", y="share:Q")], width=300, height=200)

Importing Altair and building a page's charts with it took 0.6 s. The tests validate every chart against Vega-Lite's
schema.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"

Spec = dict[str, Any]

_TYPES = {"Q": "quantitative", "O": "ordinal", "N": "nominal"}
_SECOND_ENDS = ("x2", "y2")
"""Channels that take their type from the first end."""


@dataclass(frozen=True)
class Rows:
    """The data of a mark: its source, and the transforms on it."""

    data: Spec
    steps: tuple[Spec, ...] = ()

    def where(self, test: str) -> Rows:
        """The rows that pass the test."""
        return replace(self, steps=(*self.steps, {"filter": test}))

    def having(self, **formulas: str) -> Rows:
        """The rows with further columns, computed by formulas."""
        made = ({"calculate": formula, "as": name} for name, formula in formulas.items())
        return replace(self, steps=(*self.steps, *made))

    def mark(self, kind: str, **look: Any) -> Mark:
        """The rows as a mark of this kind."""
        return Mark(self, {"type": kind, **look})


@dataclass(frozen=True)
class Mark:
    """A mark for each row, not yet encoded."""

    rows: Rows
    look: Spec

    def encode(self, **channels: str | Spec) -> Spec:
        """A layer of a chart. A channel comes from `field` or `value`, or is short for a field: "layer:O"."""
        encoding = {name: _channel(name, given) for name, given in channels.items()}
        steps = {"transform": list(self.rows.steps)} if self.rows.steps else {}
        return {"data": self.rows.data, "mark": self.look, "encoding": encoding, **steps}


def rows_of(name: str) -> Rows:
    """Rows of a named dataset, which the page or the picture supplies."""
    return Rows({"name": name})


def own_rows(values: Sequence[Mapping[str, Any]]) -> Rows:
    """Rows that are part of the chart."""
    return Rows({"values": [dict(row) for row in values]})


def field(short: str, **more: Any) -> Spec:
    """A column as a channel: "layer:O" with its scale, axis, legend or order."""
    name, _, kind = short.partition(":")
    return {"field": name, "type": _TYPES[kind], **more}


def value(given: Any) -> Spec:
    """The same for every row."""
    return {"value": given}


def either(test: str, then: Any, otherwise: Any) -> Spec:
    """One value where the test passes, and another where it does not."""
    return {"condition": {"test": test, "value": then}, "value": otherwise}


def param(name: str, value: Any) -> Spec:
    """A parameter that the page may set."""
    return {"name": name, "value": value}


def chart(layers: Sequence[Spec], params: Sequence[Spec] = (), *, width: int | str, height: int) -> Spec:
    """Layers on top of each other, or a single one."""
    drawn = dict(layers[0]) if len(layers) == 1 else {"layer": list(layers)}
    return {**drawn, "height": height, "params": list(params), "width": width, "$schema": SCHEMA}


def _channel(name: str, given: str | Spec) -> Spec:
    if not isinstance(given, str):
        return given
    return {"field": given.partition(":")[0]} if name in _SECOND_ENDS else field(given)
