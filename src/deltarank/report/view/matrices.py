"""The rows under the heat map, the curves and the tables of one run: cells, modules and matrices."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice, zip_longest

from deltarank.report.view.activations import activation_lost
from deltarank.report.view.page import HeatCell, MatrixRow, ModuleRow, PageAxes
from deltarank.report.view.text import rounded_share, significant
from deltarank.results import MatrixResult, Outcome, Results, Total, escape

NO_LAYER = "–"
SPECTRUM_POINTS = 48
MOST_DETAILED, MOST_DETAILED_OF_ALL = 1200, 3600
"""How many matrices of a run, and of all, have their curve and spectrum on the page, largest loss first."""

MOST_LISTED, MOST_LISTED_OF_ALL = 3000, 12000
"""How many matrices of a run, and of all, have a row on the page. Of more, each cell keeps those that lose the most."""


def layer_label(layer: int | None) -> str:
    return NO_LAYER if layer is None else str(layer)


def _indices_by_cell(run: Results) -> dict[tuple[float, str], list[int]]:
    """(layer, module) -> the indices of its matrices."""
    groups: dict[tuple[float, str], list[int]] = {}
    for i, matrix in enumerate(run.matrices):
        layer = math.inf if matrix.layer is None else matrix.layer
        groups.setdefault((layer, matrix.module), []).append(i)
    return groups


def listed_indices(run: Results, runs: int) -> tuple[int, ...]:
    """The indices of the matrices that have a row on a page of `runs`, in the order of the run.

    All, or the worst of each cell, and then the second of each; of more cells, those that lose the most.
    """
    most = min(MOST_LISTED, MOST_LISTED_OF_ALL // runs)
    if len(run.matrices) <= most:
        return tuple(range(len(run.matrices)))
    columns = [_worst_first(run, members) for members in _indices_by_cell(run).values()]
    in_turn = (i for row in zip_longest(*columns) for i in _worst_first(run, (i for i in row if i is not None)))
    return tuple(sorted(islice(in_turn, most)))


def _worst_first(run: Results, indices: Iterable[int]) -> list[int]:
    """By the energy lost, summed over all ranks."""
    return sorted(indices, key=lambda i: -sum(loss.energy_lost for loss in run.matrices[i].losses))


def heat_cells(run: Results, axes: PageAxes, listed: Sequence[int]) -> tuple[HeatCell, ...]:
    """A cell for each layer and module of the run, by layer and then by module."""
    order = {name: i for i, name in enumerate(axes.modules)}
    cells = sorted(_indices_by_cell(run).items(), key=lambda item: (item[0][0], order[item[0][1]]))
    row_of = {i: row for row, i in enumerate(listed)}
    return tuple(_heat_cell(run, members, axes, row_of) for _, members in cells)


def _heat_cell(run: Results, members: list[int], axes: PageAxes, row_of: Mapping[int, int]) -> HeatCell:
    matrices = [run.matrices[i] for i in members]
    total = Total.of(matrices)
    missing = [m for m in matrices if not m.has_losses]
    return HeatCell(
        layer=layer_label(matrices[0].layer),
        module=axes.modules[matrices[0].module],
        lost=axes.lost(total.losses),
        members=tuple(row_of[i] for i in members if i in row_of),
        matrices=len(members),
        missing=len(missing),
        unchanged=total.matrices > 0 and total.energy == 0,
        reason=_reason(missing[0] if missing else matrices[0]),
    )


def _share_of_change(energy: float, run: Results) -> float | None:
    whole = run.totals.whole.energy
    return rounded_share(energy / whole) if whole > 0 else None


def _reason(matrix: MatrixResult) -> str | None:
    """Why there is no loss, or nothing to lose."""
    if matrix.outcome is Outcome.MEASURED:
        return None
    return escape(matrix.reason or matrix.outcome.sentence)


def module_rows(run: Results, axes: PageAxes) -> tuple[ModuleRow, ...]:
    """The modules of the run in reading order."""
    totals = run.totals.by_module
    return tuple(
        ModuleRow(module, _share_of_change(totals[name].energy, run), axes.lost(totals[name].losses))
        for name, module in axes.modules.items()
        if name in totals
    )


def matrix_rows(run: Results, axes: PageAxes, listed: Sequence[int]) -> tuple[MatrixRow, ...]:
    """A row for each of the matrices with these indices."""
    most = min(MOST_DETAILED, MOST_DETAILED_OF_ALL // axes.runs)
    detailed = set(_worst_first(run, listed)[:most])
    return tuple(_matrix_row(run, run.matrices[i], axes, is_detailed=i in detailed) for i in listed)


def _matrix_row(run: Results, matrix: MatrixResult, axes: PageAxes, *, is_detailed: bool) -> MatrixRow:
    return MatrixRow(
        name=escape(matrix.name),
        layer=layer_label(matrix.layer),
        shape=matrix.shape,
        dtype=escape(matrix.dtype),
        reason=_reason(matrix),
        lost=axes.lost(matrix.losses if matrix.has_losses else ()),
        activation_lost=activation_lost(matrix.activation_loss, run, axes.ranks),
        share=_share_of_change(matrix.energy, run) if matrix.has_losses else None,
        relative_norm=significant(matrix.relative_norm),
        frobenius=significant(matrix.frobenius),
        mean_abs=significant(matrix.mean_abs),
        max_rank=matrix.max_rank,
        stable_rank=significant(matrix.stable_rank),
        effective_rank=significant(matrix.effective_rank),
        signal_rank=matrix.signal_rank,
        rounding_floor=rounded_share(matrix.rounding_floor),
        floor_level=significant(_floor_level(matrix)),
        noise_edge=significant(matrix.noise_edge),
        solver=escape(matrix.solver) if matrix.solver else None,
        curve=_curve(matrix) if is_detailed else (),
        spectrum=_spectrum(matrix) if is_detailed else (),
    )


def _floor_level(matrix: MatrixResult) -> float | None:
    """The singular value of rounding if its energy were spread evenly: ||D|| sqrt(rounding_floor / max_rank)."""
    if not matrix.rounding_floor or not matrix.frobenius or not matrix.max_rank:
        return None
    return matrix.frobenius * math.sqrt(matrix.rounding_floor / matrix.max_rank)


def _curve(matrix: MatrixResult) -> tuple[tuple[int, float], ...]:
    """(rank, energy lost), by rank. At requested ranks it is the loss measured without cancellation."""
    points = {rank: 1.0 - kept for rank, kept in matrix.curve} | {x.rank: x.energy_lost for x in matrix.losses}
    finite = ((rank, rounded_share(lost)) for rank, lost in sorted(points.items()))
    return tuple((rank, lost) for rank, lost in finite if lost is not None)


def _spectrum(matrix: MatrixResult) -> tuple[tuple[int, float], ...]:
    """About 48 singular values at log-spaced indices, the first and the last included; zeros have no logarithm."""
    values = [v for v in matrix.singular_values if math.isfinite(v) and v > 0]
    points = ((i, significant(values[i - 1])) for i in log_spaced(len(values), SPECTRUM_POINTS))
    return tuple((i, v) for i, v in points if v is not None)


def log_spaced(last: int, points: int) -> list[int]:
    """At most `points` whole numbers from 1 to `last`, evenly spaced on a log axis."""
    if last <= points:
        return list(range(1, last + 1))
    step = math.log(last) / (points - 1)
    return sorted({round(math.exp(step * i)) for i in range(points)})
