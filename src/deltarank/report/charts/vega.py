"""The few words of Vega-Lite in which the charts are written, as plain dictionaries.

    bars = rows_of("tokens").where("datum.share > 0")
    chart([bars.mark("bar", style="bar").encode(x="from:Q", y="share:Q")], width=300, height=200)

Altair says the same in more words; to import it and to let it spell out a page's charts took 0.6 s. The tests hold
every chart against Vega-Lite's schema.
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
    """Rows on their way to a mark: where they come from, and what is done to them."""

    data: Spec
    steps: tuple[Spec, ...] = ()

    def where(self, test: str) -> Rows:
        """Those that pass."""
        return replace(self, steps=(*self.steps, {"filter": test}))

    def having(self, **formulas: str) -> Rows:
        """With further columns."""
        made = ({"calculate": formula, "as": name} for name, formula in formulas.items())
        return replace(self, steps=(*self.steps, *made))

    def mark(self, kind: str, **look: Any) -> Mark:
        """Drawn as this kind of mark."""
        return Mark(self, {"type": kind, **look})


@dataclass(frozen=True)
class Mark:
    """A mark for each of these rows. It has no place and no colour yet."""

    rows: Rows
    look: Spec

    def encode(self, **channels: str | Spec) -> Spec:
        """A layer of a chart. A channel is one of `field`'s or `value`'s, or short for a field, as in "layer:O"."""
        encoding = {name: _channel(name, given) for name, given in channels.items()}
        steps = {"transform": list(self.rows.steps)} if self.rows.steps else {}
        return {"data": self.rows.data, "mark": self.look, "encoding": encoding, **steps}


def rows_of(name: str) -> Rows:
    """Rows that whoever shows the chart puts in under this name."""
    return Rows({"name": name})


def own_rows(values: Sequence[Mapping[str, Any]]) -> Rows:
    """Rows that belong to the chart."""
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
    """A number or a word that the page may set."""
    return {"name": name, "value": value}


def chart(layers: Sequence[Spec], params: Sequence[Spec] = (), *, width: int | str, height: int) -> Spec:
    """Layers over each other, or a single one for itself."""
    drawn = dict(layers[0]) if len(layers) == 1 else {"layer": list(layers)}
    return {**drawn, "height": height, "params": list(params), "width": width, "$schema": SCHEMA}


def _channel(name: str, given: str | Spec) -> Spec:
    if not isinstance(given, str):
        return given
    return {"field": given.partition(":")[0]} if name in _SECOND_ENDS else field(given)
