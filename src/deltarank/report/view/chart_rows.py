"""PageData -> the rows that a chart draws. The page's script gets the same rows, column by column."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from deltarank.report.view.page import PageData, RunView, Shares
from deltarank.report.view.text import rounded_share

Row = dict[str, Any]

THE_WHOLE = "all matrices"


def _lost_fields(page: PageData, lost: Shares) -> Row:
    return {f"lost_{rank}": share for rank, share in zip(page.ranks, lost, strict=True)}


def cell_rows(page: PageData, run: RunView) -> list[Row]:
    """A row a square: for the heat map and for the article's charts. `number` is the layer where it has one."""
    rows = []
    for i, cell in enumerate(run.cells):
        module = page.modules[cell.module]
        rows.append(
            {
                "cell": i,
                "layer": cell.layer,
                "number": int(cell.layer) if cell.layer.isdecimal() else None,
                "module": module.label,
                "short": module.short,
                "group": module.group.value,
                "styled": module.style is not None,
                "same": cell.same,
                **_lost_fields(page, cell.lost),
            }
        )
    return rows


def rank_rows(page: PageData, run: RunView) -> list[Row]:
    """A row for each module and rank, and for the whole: `kind` is module, rest (drawn grey) or whole."""
    rows = []
    for row in run.modules:
        module = page.modules[row.module]
        kind = "rest" if module.style is None else "module"
        rows += _points(page, kind, module.label, row.lost)
    return rows + _points(page, "whole", THE_WHOLE, whole_lost(run))


def whole_lost(run: RunView) -> Shares:
    return tuple(None if loss is None else rounded_share(loss.energy_lost) for loss in run.losses)


def run_rows(page: PageData) -> list[Row]:
    """A row for each run and rank."""
    return [row for run in page.runs for row in _points(page, "module", run.label, whole_lost(run))]


def _points(page: PageData, kind: str, name: str, lost: Shares) -> list[Row]:
    return [
        {"kind": kind, "module": name, "at": rank, "lost": share}
        for rank, share in zip(page.ranks, lost, strict=True)
        if share is not None
    ]


def end_rows(rows: Sequence[Row], *, gap: float, names: dict[str, str] | None = None) -> list[Row]:
    """Where each line ends and where its name stands: names at least `gap` apart, in the order of their lines."""
    last = {row["module"]: row for row in rows if row["kind"] != "rest"}
    ends = sorted(last.values(), key=lambda row: -row["lost"])
    places = spread([row["lost"] for row in ends], gap)
    return [
        {**end, "label_at": place, "name": (names or {}).get(end["module"], end["module"])}
        for end, place in zip(ends, places, strict=True)
    ]


def spread(values: Sequence[float], gap: float, *, low: float = 0.0, high: float = 1.0) -> list[float]:
    """Falling values moved as little as need be to stand `gap` apart within [low, high].

    If they do not all fit, they are spread evenly over what room there is.
    """
    if not values:
        return []
    gap = min(gap, (high - low) / max(len(values) - 1, 1))
    placed = _pushed_down([min(v, high) for v in values], gap)
    lifted = _pushed_down([low + high - v for v in reversed([max(v, low) for v in placed])], gap)
    return [low + high - v for v in reversed(lifted)]


def _pushed_down(values: Sequence[float], gap: float) -> list[float]:
    result: list[float] = []
    for value in values:
        result.append(min(value, result[-1] - gap) if result else value)
    return result


def top_cosine(page: PageData, place: int | None = None) -> float:
    """Where the axis of the article's charts ends: one end for all runs and groups, so that they compare.

    `place` looks at one rank alone; without it the end holds for all ranks.
    """
    ranks = slice(None) if place is None else slice(place, place + 1)
    losts = [share for run in page.runs for cell in run.cells for share in cell.lost[ranks] if share is not None]
    worst = max((lost / (1 + math.sqrt(1 - lost)) for lost in losts), default=0.0)
    return next((top for top in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8) if worst <= top), 1.0)


def columns(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Rows turned on their side: names once, values in lists. All rows have the same fields."""
    return {name: [row[name] for row in rows] for name in rows[0]} if rows else {}
