"""The rows that the charts of the weights draw. The page's script gets the same rows, column by column."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from deltarank.report.view.page import ModuleRow, PageData, RunView, Shares

Row = dict[str, Any]

ALL_MATRICES = "all matrices"
ALL_OUTPUTS = "layers' outputs"


def cell_rows(page: PageData, run: RunView) -> list[Row]:
    """A row for each cell, for the heat map and the charts by layer. `lost_64` is the energy lost at rank 64."""
    return [
        {
            "cell": i,
            "layer": cell.layer,
            "layer_number": int(cell.layer) if cell.layer.isdecimal() else None,
            "module": cell.module.label,
            "short_module": cell.module.short_label,
            "group": cell.module.group.value,
            "has_style": cell.module.style is not None,
            "unchanged": cell.unchanged,
            **{f"lost_{rank}": lost for rank, lost in zip(page.ranks, cell.lost, strict=True)},
        }
        for i, cell in enumerate(run.cells)
    ]


def rank_rows(page: PageData, run: RunView) -> list[Row]:
    """A row for each module and rank, and for all matrices. `kind` is module, rest (drawn in grey), whole or outputs.

    outputs: the activation-weighted loss of all matrices.
    """
    rows = [row for module in (*run.modules, run.whole) for row in _module_points(page, module)]
    return rows if run.activations is None else [*rows, *_points(page, "outputs", ALL_OUTPUTS, run.activations.lost)]


def _module_points(page: PageData, row: ModuleRow) -> list[Row]:
    if row.module is None:
        return _points(page, "whole", ALL_MATRICES, row.lost)
    return _points(page, "rest" if row.module.style is None else "module", row.module.label, row.lost)


def run_rows(page: PageData) -> list[Row]:
    """A row for each run and rank."""
    return [row for run in page.runs for row in _points(page, "module", run.label, run.whole.lost)]


def _points(page: PageData, kind: str, name: str, lost: Shares) -> list[Row]:
    return [
        {"kind": kind, "module": name, "rank": rank, "lost": share}
        for rank, share in zip(page.ranks, lost, strict=True)
        if share is not None
    ]


def line_end_rows(rows: Sequence[Row], *, gap: float, names: dict[str, str] | None = None) -> list[Row]:
    """The end of each line and the height of its name: names at least `gap` apart, in the order of the lines."""
    last = {row["module"]: row for row in rows if row["kind"] != "rest"}
    ends = sorted(last.values(), key=lambda row: -row["lost"])
    heights = spread_out([row["lost"] for row in ends], gap)
    return [
        {**end, "label_y": height, "name": (names or {}).get(end["module"], end["module"])}
        for end, height in zip(ends, heights, strict=True)
    ]


def spread_out(values: Sequence[float], gap: float, *, low: float = 0.0, high: float = 1.0) -> list[float]:
    """Falling values, moved as little as needed to be `gap` apart within [low, high].

    If they do not all fit, they are spread evenly over the range.
    """
    if not values:
        return []
    gap = min(gap, (high - low) / max(len(values) - 1, 1))
    lowered = _pushed_down([min(v, high) for v in values], gap)
    raised = _pushed_down([low + high - v for v in reversed([max(v, low) for v in lowered])], gap)
    return [low + high - v for v in reversed(raised)]


def _pushed_down(values: Sequence[float], gap: float) -> list[float]:
    result: list[float] = []
    for value in values:
        result.append(min(value, result[-1] - gap) if result else value)
    return result


def cosine_axis_end(page: PageData, rank_index: int | None = None) -> float:
    """The end of the axis of cosine distances, the same for all runs and groups of modules, so that they compare.

    It holds for all ranks, or for the one at `rank_index`.
    """
    ranks = slice(None) if rank_index is None else slice(rank_index, rank_index + 1)
    losses = [share for run in page.runs for cell in run.cells for share in cell.lost[ranks] if share is not None]
    worst = max((lost / (1 + math.sqrt(1 - lost)) for lost in losses), default=0.0)
    return next((end for end in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8) if worst <= end), 1.0)


def as_columns(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Rows as columns: each name once, with a list of its values. All rows have the same fields."""
    return {name: [row[name] for row in rows] for name in rows[0]} if rows else {}
