"""The budget of an adapter as a picture: where the change is, and how much of it the adapter keeps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deltarank.report.charts.building_blocks import PERCENT_LABEL
from deltarank.report.charts.frame import framed
from deltarank.report.charts.theme import COLOURS, INKS
from deltarank.report.charts.vega import Spec, field, own_rows
from deltarank.report.drawing.draw import drawing_process, start_drawing
from deltarank.report.view.text import unbroken
from deltarank.results import escape, percent, shorten

MOST_MODULES, MOST_KINDS = 14, 8
LEAST_SHARE = 5e-4
"""The smallest share of the change that gets a bar; the rest is summed in one."""

_FATES = {"kept": COLOURS[0], "truncated": "#ef8d5d", "lost to rounding": COLOURS[5], "left out": "#b9b3b8"}
"""What happens to a part of the change, and its colour."""


@dataclass(frozen=True)
class _Bar:
    """A module or a kind of tensor. `shares` are of the whole change, by fate."""

    name: str
    shares: Mapping[str, float]

    @property
    def length(self) -> float:
        return math.fsum(self.shares.values())

    @property
    def note(self) -> str:
        kept = self.shares.get("kept", 0.0)
        if kept <= 0 or self.length <= 0:
            return f"{percent(self.length)}, not in it"
        if kept >= self.length:
            return percent(self.length)
        return f"{percent(self.length)}, {percent(kept / self.length)} of it kept"


def adapter_picture(description: Mapping[str, Any]) -> bytes:
    """A PNG of an adapter's budget.

    It has a bar for each module or kind of tensor, as long as its share of the whole change ||W - W0||^2, in parts:
    kept, truncated, lost to rounding, left out.

    Args:
        description: the content of the adapter's deltarank.json.
    """
    names = f"{_last_part(description['finetune'])} less {_last_part(description['base'])}"
    picture = framed(
        _bar_chart(_bars(description)),
        unbroken(f"This LoRA of rank {description['rank']} {escape(description['sentence'])}."),
        f"Shares of the whole change, ||W - W0||², of {names}",
    )
    with drawing_process():
        return start_drawing(picture)()


def _last_part(reference: Mapping[str, Any]) -> str:
    return shorten(escape(reference["ref"]).rstrip("/").rsplit("/", 1)[-1])


def _bars(description: Mapping[str, Any]) -> list[_Bar]:
    budget = description["budget"]
    modules = sorted(_module_bars(description["matrices"], budget["energy"]), key=lambda bar: -bar.length)
    whole = budget["kept"] - math.fsum(bar.shares["kept"] for bar in modules)
    left_out = [
        _Bar(shorten(escape(kind["kind"])), {"left out": kind["share"]})
        for kind in budget["kinds"]
        if kind["share"] >= LEAST_SHARE
    ]
    return [
        *_at_most(modules, MOST_MODULES, "module"),
        *([_Bar("carried whole", {"kept": whole})] if whole >= LEAST_SHARE else []),
        *_at_most(left_out, MOST_KINDS, "kind"),
    ]


def _module_bars(matrices: Sequence[Mapping[str, Any]], whole: float) -> Iterator[_Bar]:
    parts: dict[str, list[tuple[float, float, float]]] = {}
    for matrix in matrices:
        if matrix["written"] is None or not matrix["losses"] or whole <= 0:
            continue
        energy = matrix["energy"] / whole
        lost = energy * matrix["written"]["relative_error"] ** 2
        truncated = min(energy * matrix["losses"][0]["relative_error"] ** 2, lost)
        parts.setdefault(matrix["module"], []).append((energy - lost, truncated, lost - truncated))
    for module, shares in parts.items():
        sums = (math.fsum(column) for column in zip(*shares, strict=True))
        yield _Bar(shorten(escape(module)), dict(zip(_FATES, sums, strict=False)))


def _at_most(bars: Sequence[_Bar], most: int, noun: str) -> list[_Bar]:
    """The first bars, and the sum of the others."""
    if len(bars) <= most:
        return list(bars)
    others = bars[most - 1 :]
    sums = {fate: math.fsum(bar.shares.get(fate, 0.0) for bar in others) for fate in _FATES}
    return [*bars[: most - 1], _Bar(f"{len(others):,} more {noun}s", sums)]


def _bar_chart(bars: Sequence[_Bar]) -> Spec:
    shares = own_rows(
        [
            {"bar": bar.name, "fate": fate, "order": order, "share": bar.shares.get(fate, 0.0)}
            for bar in bars
            for order, fate in enumerate(_FATES)
        ]
    )
    notes = own_rows([{"bar": bar.name, "share": bar.length, "note": unbroken(bar.note)} for bar in bars])
    fates = [fate for fate in _FATES if any(bar.shares.get(fate, 0.0) >= LEAST_SHARE for bar in bars)]
    y = field("bar:N", sort=[bar.name for bar in bars], title=None, axis={"labelLimit": 330})
    x = field(
        "share:Q",
        title="share of the change",
        axis={"labelExpr": PERCENT_LABEL, "tickCount": 5, "grid": False},
        scale={"domain": [0, max((bar.length for bar in bars), default=1.0) or 1.0], "nice": False},
    )
    colour = field(
        "fate:N",
        scale={"domain": fates, "range": [_FATES[fate] for fate in fates]},
        legend={"title": None, "orient": "top", "symbolType": "square", "symbolStrokeWidth": 0},
    )
    layers = [
        shares.mark("bar", height={"band": 0.66}).encode(y=y, x={**x, "stack": "zero"}, color=colour, order="order:Q"),
        notes.mark("text", align="left", dx=8, color=INKS["muted"], clip=False).encode(y=y, x=x, text="note:N"),
    ]
    return {"layer": layers, "width": 620, "height": 30 * max(len(bars), 1)}
