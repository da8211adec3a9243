"""Builds the data of a page from results."""

from __future__ import annotations

from collections.abc import Sequence

from deltarank.report.view.activations import activations_view
from deltarank.report.view.blind import blind_views
from deltarank.report.view.headline import figures_at, headline_at, weights_headline_at
from deltarank.report.view.matrices import heat_cells, layer_label, listed_indices, matrix_rows, module_rows
from deltarank.report.view.modules import Module, arrange_modules
from deltarank.report.view.outputs import output_ranks, outputs_view
from deltarank.report.view.page import ModuleRow, PageAxes, PageData, RunView
from deltarank.report.view.provenance import left_out_groups, provenance_of
from deltarank.report.view.tables import energy_table, outputs_of_runs_table, weights_of_runs_table
from deltarank.results import (
    SERVABLE_RANKS,
    IncludedByName,
    Loss,
    Results,
    VerdictKind,
    common_headline_rank,
    escape,
    measured_share,
    noise_shares,
    shorten,
)

_KINDS = {
    VerdictKind.IDENTICAL: "identical",
    VerdictKind.MERGED_LORA: "merged LoRA",
    VerdictKind.ADAPTER: "LoRA adapter",
    VerdictKind.FULL: "full finetune or merge",
    VerdictKind.ROUNDING: "mostly storage rounding",
    VerdictKind.UNRELATED: "not a finetune of this base",
    VerdictKind.UNKNOWN: "undecided",
}


def kind_in_words(kind: VerdictKind) -> str:
    """What kind of delta a run has, in a few words."""
    return _KINDS[kind]


def page_data(runs: Sequence[Results]) -> PageData:
    """The data of a page over these runs.

    Raises:
        ValueError: there is no run.
    """
    if not runs:
        raise ValueError("a page needs at least one run")
    ranks = tuple(sorted({rank for run in runs for rank in (*run.ranks, *output_ranks(run.outputs))}))
    modules = _modules(runs)
    axes = PageAxes(ranks, {module.name: module for module in modules}, len(runs))
    labels = _labels(runs)
    views = tuple(_run_view(run, label, axes) for run, label in zip(runs, labels, strict=True))
    default_index = ranks.index(common_headline_rank(runs))
    return PageData(
        title=" · ".join(labels),
        runs=views,
        ranks=ranks,
        servable=tuple(rank in SERVABLE_RANKS for rank in ranks),
        default_index=default_index,
        headlines=tuple(headline_at(i, rank, views) for i, rank in enumerate(ranks)),
        weights_headline=weights_headline_at(default_index, ranks[default_index], views),
        figures=tuple(figures_at(i, rank, views) for i, rank in enumerate(ranks)),
        modules=modules,
        layers=_layers(runs),
        weights_of_runs=weights_of_runs_table(ranks, views) if len(views) > 1 else None,
        outputs_of_runs=outputs_of_runs_table(ranks, views) if len(views) > 1 else None,
        tool_version=escape(runs[0].tool_version),
    )


def _modules(runs: Sequence[Results]) -> tuple[Module, ...]:
    energies: dict[str, float] = {}
    for run in runs:
        for name, total in run.totals.by_module.items():
            energies[name] = energies.get(name, 0.0) + total.energy
    return arrange_modules(energies)


def _layers(runs: Sequence[Results]) -> tuple[str, ...]:
    numbers = {matrix.layer for run in runs for matrix in run.matrices}
    ordered = sorted(n for n in numbers if n is not None)
    return tuple(layer_label(n) for n in [*ordered, *([None] if None in numbers else [])])


def _labels(runs: Sequence[Results]) -> list[str]:
    """The finetunes' short names; full references where those are not unique; numbered where these are not either."""
    labels = [shorten(escape(run.finetune.short_name)) for run in runs]
    if len(set(labels)) < len(labels):
        labels = [shorten(escape(run.finetune.ref)) for run in runs]
    if len(set(labels)) < len(labels):
        labels = [f"{label} ({i})" for i, label in enumerate(labels, 1)]
    return labels


def _run_view(run: Results, label: str, axes: PageAxes) -> RunView:
    whole, listed = run.totals.whole, listed_indices(run, axes.runs)
    by_rank: dict[int, Loss] = {loss.rank: loss for loss in whole.losses}
    losses = tuple(by_rank.get(rank) for rank in axes.ranks)
    modules, whole_row = module_rows(run, axes), ModuleRow(None, 1.0, axes.lost(whole.losses))
    return RunView(
        label=label,
        base=shorten(escape(run.base.short_name)),
        kind=kind_in_words(run.verdict.kind),
        is_unrelated=run.verdict.kind is VerdictKind.UNRELATED,
        opening=tuple(escape(sentence) for sentence in run.verdict.opening),
        sentences=tuple(escape(sentence) for sentence in run.verdict.sentences),
        losses=losses,
        measured_share=measured_share(run.skipped),
        included=escape(IncludedByName.of(run.matrices).remark),
        noise=tuple(noise_shares(run.matrices, rank) if rank in by_rank else None for rank in axes.ranks),
        matrices_measured=whole.matrices,
        energy=whole.energy,
        unpaired=run.unpaired,
        relative_norm=whole.relative_norm,
        rounding_floor=whole.rounding_floor,
        modules=modules,
        whole=whole_row,
        cells=heat_cells(run, axes, listed),
        matrices=matrix_rows(run, axes, listed),
        unlisted=len(run.matrices) - len(listed),
        left_out=left_out_groups(run),
        provenance=provenance_of(run),
        energy_table=energy_table(axes.ranks, (*modules, whole_row), losses),
        activations=activations_view(run, axes.ranks, list(axes.modules.values())),
        outputs=outputs_view(run.outputs, axes.ranks),
        blind=blind_views(run.blind),
    )
