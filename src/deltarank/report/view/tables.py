"""The tables of a page that set modules beside ranks, or runs side by side."""

from __future__ import annotations

from collections.abc import Sequence

from deltarank.report.view.chart_rows import ALL_MATRICES
from deltarank.report.view.outputs import OutputsView
from deltarank.report.view.page import MOST_SIDE_BY_SIDE, ModuleRow, RunView
from deltarank.report.view.table import Table, TableCell, TableRow
from deltarank.report.view.text import behaviour_percent, kept_percent, terse_kept, terse_percent, unbroken
from deltarank.results import Loss, figure, percent


def energy_table(ranks: Sequence[int], modules: Sequence[ModuleRow], losses: Sequence[Loss | None]) -> Table:
    """The energy kept, in %, by module and rank; the cosine distance of all matrices under it."""
    rows = tuple(
        TableRow(
            row.module.label if row.module else ALL_MATRICES,
            (terse_percent(row.share), *(terse_kept(lost) for lost in row.lost)),
        )
        for row in modules
    )
    cosine = TableRow("cosine distance", ("", *(figure(x.cosine_distance) if x else "–" for x in losses)))
    return Table(("module", "of their change", *map(str, ranks)), (rows, (cosine,)))


def weights_of_runs_table(ranks: Sequence[int], runs: Sequence[RunView]) -> Table:
    """The energy kept by rank, the cosine distance beside it, and what kind of delta each run has."""
    by_rank = tuple(
        TableRow(str(rank), tuple(_loss_cell(run.losses[i]) for run in runs), i) for i, rank in enumerate(ranks)
    )
    about = (
        TableRow("kind", tuple(run.kind for run in runs), is_text=True),
        TableRow("base", tuple(run.base for run in runs), is_text=True),
        TableRow("change / weights", tuple(unbroken(percent(run.relative_norm)) for run in runs)),
        TableRow("rounding floor", tuple(unbroken(percent(run.rounding_floor)) for run in runs)),
    )
    return _over_runs(Table(("rank", *(run.label for run in runs)), (by_rank, about)))


def _over_runs(table: Table) -> Table:
    """Few runs are columns, many are rows."""
    runs = len(table.headings) - 1
    return table if runs <= MOST_SIDE_BY_SIDE else table.transposed("finetune")


def _loss_cell(loss: Loss | None) -> TableCell:
    return (unbroken(kept_percent(loss)), figure(loss.cosine_distance)) if loss else kept_percent(None)


def outputs_of_runs_table(ranks: Sequence[int], runs: Sequence[RunView]) -> Table | None:
    """The behaviour kept by rank and then by other candidates, the mean KLD beside it; None without outputs."""
    views = [run.outputs for run in runs]
    by_rank = tuple(
        TableRow(str(rank), tuple(_outputs_cell(view, _index_at(view, i)) for view in views), i)
        for i, rank in enumerate(ranks)
        if any(_index_at(view, i) is not None for view in views)
    )
    candidates = [candidate for view in views if view for candidate in view.candidates]
    names = dict.fromkeys(candidate.name for candidate in candidates if candidate.rank_index is None)
    others = tuple(
        TableRow(name, tuple(_outputs_cell(view, _index_of(view, name)) for view in views)) for name in names
    )
    groups = tuple(group for group in (by_rank, others) if group)
    caption = "Behaviour kept: 1 − KLD / KLD of the base. In grey: the mean KLD in nats per token."
    return _over_runs(Table(("rank", *(run.label for run in runs)), groups, caption)) if groups else None


def _index_at(view: OutputsView | None, rank_index: int) -> int | None:
    """The candidate that was measured at this very rank."""
    at_rank = view.at_rank[rank_index] if view else None
    return at_rank.index if at_rank and at_rank.is_exact else None


def _index_of(view: OutputsView | None, name: str) -> int | None:
    candidates = view.candidates if view else ()
    return next((i for i, candidate in enumerate(candidates) if candidate.name == name), None)


def _outputs_cell(view: OutputsView | None, candidate: int | None) -> TableCell:
    """On the text that is shown at first."""
    if view is None or candidate is None or not view.texts:
        return "–"
    logits = view.candidates[candidate].logits[view.default_text]
    if logits is None:
        return "–"
    return unbroken(behaviour_percent(logits.kept.value if logits.kept else None)), figure(logits.kld.mean)
