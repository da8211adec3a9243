"""The rows under the charts and the table: cells, modules and matrices of one run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest

from deltarank.report.view.page import Cell, MatrixRow, ModuleRow, Shares
from deltarank.report.view.text import clean, rounded, rounded_share
from deltarank.results import Loss, MatrixResult, Outcome, Results, Total

NO_LAYER = "–"
SPECTRUM_POINTS = 48
MOST_DETAILED = 1200
"""How many matrices of a run carry their spectrum into the page, largest loss first; the JSON has them all."""

MOST_LISTED = 3000
"""How many matrices of a run have a line on the page; of more, those of each square that lose the most."""


@dataclass(frozen=True)
class Places:
    """Where things stand on the page: its ranks in order, and each module's row."""

    ranks: tuple[int, ...]
    modules: Mapping[str, int]

    def lost(self, losses: Iterable[Loss]) -> Shares:
        by_rank = {loss.rank: loss.energy_lost for loss in losses}
        return tuple(rounded_share(by_rank.get(rank)) for rank in self.ranks)


def layer_label(layer: int | None) -> str:
    return NO_LAYER if layer is None else str(layer)


def _squares(run: Results) -> dict[tuple[float, str], list[int]]:
    """(layer, module) -> the numbers of its matrices."""
    groups: dict[tuple[float, str], list[int]] = {}
    for i, matrix in enumerate(run.matrices):
        layer = math.inf if matrix.layer is None else matrix.layer
        groups.setdefault((layer, matrix.module), []).append(i)
    return groups


def listed(run: Results) -> tuple[int, ...]:
    """The numbers of the matrices that have a line, in the order of the run: all, or the worst of each square."""
    if len(run.matrices) <= MOST_LISTED:
        return tuple(range(len(run.matrices)))
    columns = [_worst_first(run, members) for members in _squares(run).values()]
    in_turn = (i for row in zip_longest(*columns) for i in row if i is not None)
    return tuple(sorted(islice(in_turn, MOST_LISTED)))


def _worst_first(run: Results, numbers: Iterable[int]) -> list[int]:
    """By the energy lost at all ranks together."""
    return sorted(numbers, key=lambda i: -sum(loss.energy_lost for loss in run.matrices[i].losses))


def cells(run: Results, places: Places, lines: Sequence[int]) -> tuple[Cell, ...]:
    """A cell for each (layer, module) of the run, by layer and then by module. Its members are places in `lines`."""
    ordered = sorted(_squares(run).items(), key=lambda item: (item[0][0], places.modules[item[0][1]]))
    at = {i: line for line, i in enumerate(lines)}
    return tuple(_cell(run, members, places, at) for _, members in ordered)


def _cell(run: Results, members: list[int], places: Places, at: Mapping[int, int]) -> Cell:
    matrices = [run.matrices[i] for i in members]
    total = Total.of(matrices)
    missing = [m for m in matrices if not m.has_losses]
    return Cell(
        layer=layer_label(matrices[0].layer),
        module=places.modules[matrices[0].module],
        lost=places.lost(total.losses),
        share=_share(total.energy, run),
        members=tuple(at[i] for i in members if i in at),
        matrices=len(members),
        missing=len(missing),
        same=total.matrices > 0 and total.energy == 0,
        reason=_reason(missing[0] if missing else matrices[0]),
    )


def _share(energy: float, run: Results) -> float | None:
    whole = run.totals.whole.energy
    return rounded_share(energy / whole) if whole > 0 else None


def _reason(matrix: MatrixResult) -> str | None:
    """Why there is no loss, or why there is nothing to lose."""
    if matrix.outcome is Outcome.MEASURED:
        return None
    return clean(matrix.reason or matrix.outcome.sentence)


def module_rows(run: Results, places: Places) -> tuple[ModuleRow, ...]:
    rows = [
        ModuleRow(places.modules[name], total.matrices, _share(total.energy, run), places.lost(total.losses))
        for name, total in run.totals.by_module.items()
    ]
    return tuple(sorted(rows, key=lambda row: row.module))


def matrix_rows(run: Results, places: Places, lines: Sequence[int]) -> tuple[MatrixRow, ...]:
    """A row for each of the matrices of these numbers."""
    detailed = set(_worst_first(run, lines)[:MOST_DETAILED])
    return tuple(_matrix_row(run, run.matrices[i], places, i in detailed) for i in lines)


def _matrix_row(run: Results, matrix: MatrixResult, places: Places, detailed: bool) -> MatrixRow:
    return MatrixRow(
        name=clean(matrix.name),
        layer=layer_label(matrix.layer),
        module=places.modules[matrix.module],
        shape=matrix.shape,
        dtype=clean(matrix.dtype),
        reason=_reason(matrix),
        lost=places.lost(matrix.losses) if matrix.has_losses else places.lost(()),
        share=_share(matrix.energy, run) if matrix.has_losses else None,
        relative_norm=rounded(matrix.relative_norm),
        frobenius=rounded(matrix.frobenius),
        mean_abs=rounded(matrix.mean_abs),
        max_rank=matrix.max_rank,
        stable_rank=rounded(matrix.stable_rank),
        effective_rank=rounded(matrix.effective_rank),
        signal_rank=matrix.signal_rank,
        rounding_floor=rounded_share(matrix.rounding_floor),
        floor_level=rounded(_floor_level(matrix)),
        noise_edge=rounded(matrix.noise_edge),
        solver=clean(matrix.solver) if matrix.solver else None,
        curve=_curve(matrix) if detailed else (),
        spectrum=_spectrum(matrix) if detailed else (),
    )


def _floor_level(matrix: MatrixResult) -> float | None:
    """The singular value that rounding would have if its energy were spread evenly: ||D|| sqrt(floor / max_rank)."""
    if not matrix.rounding_floor or not matrix.frobenius or not matrix.max_rank:
        return None
    return matrix.frobenius * math.sqrt(matrix.rounding_floor / matrix.max_rank)


def _curve(matrix: MatrixResult) -> tuple[tuple[int, float], ...]:
    """(rank, energy lost), by rank. Where a rank was asked for, the loss that does not cancel is taken."""
    points = {rank: 1.0 - kept for rank, kept in matrix.curve} | {x.rank: x.energy_lost for x in matrix.losses}
    finite = ((rank, rounded_share(lost)) for rank, lost in sorted(points.items()))
    return tuple((rank, lost) for rank, lost in finite if lost is not None)


def _spectrum(matrix: MatrixResult) -> tuple[tuple[int, float], ...]:
    """About 48 singular values at log-spaced places, the first and the last among them; zeros have no logarithm."""
    values = [v for v in matrix.singular_values if math.isfinite(v) and v > 0]
    points = ((i, rounded(values[i - 1])) for i in spaced(len(values), SPECTRUM_POINTS))
    return tuple((i, v) for i, v in points if v is not None)


def spaced(last: int, points: int) -> list[int]:
    """At most `points` whole numbers from 1 to `last`, evenly spaced on a log axis."""
    if last <= points:
        return list(range(1, last + 1))
    step = math.log(last) / (points - 1)
    return sorted({round(math.exp(step * i)) for i in range(points)})
