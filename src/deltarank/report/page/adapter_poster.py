"""An adapter's budget as a picture: where the change lay, and what of it the adapter keeps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deltarank.report.charts.frame import framed
from deltarank.report.charts.theme import INKS
from deltarank.report.drawing.draw import drawing_process, start_drawing
from deltarank.report.view.text import clean, short, unbroken
from deltarank.results import percent

MOST_MODULES, MOST_KINDS = 14, 8
LEAST_SHARE = 5e-4
"""Of the change: what has less than this has no bar of its own."""

_FATES = ("kept", "truncated", "lost to rounding", "left out")
_COLOURS = ("#1d5fa8", "#ef8d5d", "#b8860b", "#b9b3b8")
_WIDTH, _STEP = 620, 30
_PERCENT = "format(100 * datum.value, '~g') + '\\u00a0%'"

Row = dict[str, Any]


@dataclass(frozen=True)
class _Bar:
    """A module or a kind of tensor: its parts are shares of the whole change, by their fate."""

    name: str
    parts: Mapping[str, float]

    @property
    def share(self) -> float:
        return math.fsum(self.parts.values())

    @property
    def note(self) -> str:
        kept = self.parts.get("kept", 0.0)
        if kept <= 0 or self.share <= 0:
            return f"{percent(self.share)}, not in it"
        if kept >= self.share:
            return percent(self.share)
        return f"{percent(self.share)}, {percent(kept / self.share)} of it kept"


def adapter_picture(about: Mapping[str, Any]) -> bytes:
    """A PNG of what an adapter says about itself.

    A bar a module or kind of tensor, as long as its share of the whole change ||W - W0||^2, in parts: kept,
    truncated, lost to rounding, left out.

    Args:
        about: the contents of an adapter's deltarank.json.
    """
    bars = _bars(about)
    rows = [
        {"bar": bar.name, "fate": fate, "place": place, "share": bar.parts.get(fate, 0.0)}
        for bar in bars
        for place, fate in enumerate(_FATES)
    ]
    notes = [{"bar": bar.name, "share": bar.share, "note": unbroken(bar.note)} for bar in bars]
    names = f"{_last_word(about['finetune'])} less {_last_word(about['base'])}"
    picture = framed(
        _drawing(rows, notes, [bar.name for bar in bars]),
        unbroken(f"This LoRA of rank {about['rank']} {clean(about['sentence'])}."),
        f"Shares of the whole change, ||W - W0||², of {names}",
        styles=[],
    )
    with drawing_process():
        return start_drawing(picture)()


def _last_word(reference: Mapping[str, Any]) -> str:
    return short(clean(reference["ref"]).rstrip("/").rsplit("/", 1)[-1])


def _bars(about: Mapping[str, Any]) -> list[_Bar]:
    whole = about["budget"]["energy"]
    modules = sorted(_modules(about["matrices"], whole), key=lambda bar: -bar.share)
    bars = [*_most(modules, MOST_MODULES, "module"), *_carried(about["budget"], modules)]
    left = [
        _Bar(short(clean(kind["kind"])), {"left out": kind["share"]})
        for kind in about["budget"]["kinds"]
        if kind["share"] >= LEAST_SHARE
    ]
    return [*bars, *_most(left, MOST_KINDS, "kind")]


def _modules(matrices: Sequence[Mapping[str, Any]], whole: float) -> Iterator[_Bar]:
    parts: dict[str, list[tuple[float, float, float]]] = {}
    for matrix in matrices:
        if matrix["written"] is None or not matrix["losses"] or whole <= 0:
            continue
        energy = matrix["energy"] / whole
        lost = energy * matrix["written"]["relative_error"] ** 2
        truncated = min(energy * matrix["losses"][0]["relative_error"] ** 2, lost)
        parts.setdefault(matrix["module"], []).append((energy - lost, truncated, lost - truncated))
    for module, rows in parts.items():
        sums = (math.fsum(column) for column in zip(*rows, strict=True))
        yield _Bar(short(clean(module)), dict(zip(_FATES, sums, strict=False)))


def _carried(budget: Mapping[str, Any], modules: Sequence[_Bar]) -> Iterator[_Bar]:
    """What the adapter holds whole, beside its factors."""
    share = budget["kept"] - math.fsum(bar.parts["kept"] for bar in modules)
    if share >= LEAST_SHARE:
        yield _Bar("carried whole", {"kept": share})


def _most(bars: Sequence[_Bar], most: int, noun: str) -> list[_Bar]:
    """The first ones; the rest as one bar."""
    if len(bars) <= most:
        return list(bars)
    rest = bars[most - 1 :]
    sums = {fate: math.fsum(bar.parts.get(fate, 0.0) for bar in rest) for fate in _FATES}
    return [*bars[: most - 1], _Bar(f"{len(rest):,} more {noun}s", sums)]


def _drawing(rows: Sequence[Row], notes: Sequence[Row], names: Sequence[str]) -> dict[str, Any]:
    down = {"field": "bar", "type": "nominal", "sort": list(names), "title": None, "axis": {"labelLimit": 330}}
    across = {
        "field": "share",
        "type": "quantitative",
        "title": "share of the change",
        "axis": {"labelExpr": _PERCENT, "tickCount": 5, "grid": False},
        "scale": {"domain": [0, max((note["share"] for note in notes), default=1.0) or 1.0], "nice": False},
    }
    fates = [fate for fate in _FATES if any(row["fate"] == fate and row["share"] >= LEAST_SHARE for row in rows)]
    colour = {
        "field": "fate",
        "type": "nominal",
        "scale": {"domain": fates, "range": [_COLOURS[_FATES.index(fate)] for fate in fates]},
        "legend": {"title": None, "orient": "top", "symbolType": "square", "symbolStrokeWidth": 0},
    }
    bars = {
        "data": {"values": list(rows)},
        "mark": {"type": "bar", "height": {"band": 0.66}},
        "encoding": {"y": down, "x": {**across, "stack": "zero"}, "color": colour, "order": {"field": "place"}},
    }
    text = {
        "data": {"values": list(notes)},
        "mark": {"type": "text", "align": "left", "dx": 8, "color": INKS["muted"], "clip": False},
        "encoding": {"y": down, "x": across, "text": {"field": "note"}},
    }
    return {"layer": [bars, text], "width": _WIDTH, "height": _STEP * max(len(names), 1)}
