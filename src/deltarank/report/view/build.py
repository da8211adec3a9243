"""Results -> PageData."""

from __future__ import annotations

from collections.abc import Sequence

from deltarank.report.view.headline import figures, headlines
from deltarank.report.view.matrices import Places, cells, layer_label, listed, matrix_rows, module_rows
from deltarank.report.view.modules import Module, arrange
from deltarank.report.view.outputs_build import output_ranks, outputs_view
from deltarank.report.view.page import PageData, RunView
from deltarank.report.view.provenance import left_out, origin
from deltarank.report.view.text import clean, short
from deltarank.results import SERVABLE_RANKS, Loss, Results, VerdictKind, headline_rank

_KINDS = {
    VerdictKind.IDENTICAL: "identical",
    VerdictKind.MERGED_LORA: "merged LoRA",
    VerdictKind.FULL: "full finetune or merge",
    VerdictKind.ROUNDING: "at or under the rounding floor",
    VerdictKind.UNRELATED: "not a finetune of this base",
    VerdictKind.UNKNOWN: "undecided",
}


def page_data(runs: Sequence[Results]) -> PageData:
    """What the page over these runs shows.

    Raises:
        ValueError: there is no run.
    """
    if not runs:
        raise ValueError("a page needs at least one run")
    ranks = tuple(sorted({rank for run in runs for rank in (*run.ranks, *output_ranks(run.outputs))}))
    modules = _modules(runs)
    labels = _labels(runs)
    places = Places(ranks, {module.name: i for i, module in enumerate(modules)})
    views = tuple(_run_view(run, label, places) for run, label in zip(runs, labels, strict=True))
    return PageData(
        title=" · ".join(labels),
        runs=views,
        ranks=ranks,
        legal=tuple(rank in SERVABLE_RANKS for rank in ranks),
        default=_default(ranks, runs),
        headlines=headlines(ranks, views),
        figures=figures(ranks, views, modules),
        modules=modules,
        layers=_layers(runs),
        tool_version=clean(runs[0].tool_version),
    )


def _default(ranks: tuple[int, ...], runs: Sequence[Results]) -> int:
    """Where the dial stands at first: at the rank of the verdicts' headlines."""
    largest = max((matrix.max_rank for run in runs for matrix in run.measured), default=1)
    weighed = sorted({rank for run in runs for rank in run.ranks})
    return ranks.index(headline_rank(weighed, largest))


def _modules(runs: Sequence[Results]) -> tuple[Module, ...]:
    energies: dict[str, float] = {}
    for run in runs:
        for name, total in run.totals.by_module.items():
            energies[name] = energies.get(name, 0.0) + total.energy
    return arrange(energies)


def _layers(runs: Sequence[Results]) -> tuple[str, ...]:
    numbers = {matrix.layer for run in runs for matrix in run.matrices}
    ordered = sorted(n for n in numbers if n is not None)
    return tuple(layer_label(n) for n in [*ordered, *([None] if None in numbers else [])])


def _labels(runs: Sequence[Results]) -> list[str]:
    """The finetunes' short names; the whole reference where short names are alike; numbered where those are."""
    labels = [short(clean(run.finetune.short_name)) for run in runs]
    if len(set(labels)) < len(labels):
        labels = [short(clean(run.finetune.ref)) for run in runs]
    if len(set(labels)) < len(labels):
        labels = [f"{label} ({i})" for i, label in enumerate(labels, 1)]
    return labels


def _run_view(run: Results, label: str, places: Places) -> RunView:
    whole, lines = run.totals.whole, listed(run)
    by_rank: dict[int, Loss] = {loss.rank: loss for loss in whole.losses}
    return RunView(
        label=label,
        base=short(clean(run.base.short_name)),
        kind=_KINDS[run.verdict.kind],
        sentences=tuple(clean(sentence) for sentence in run.verdict.sentences),
        losses=tuple(by_rank.get(rank) for rank in places.ranks),
        matrices_measured=whole.matrices,
        energy=whole.energy,
        relative_norm=whole.relative_norm,
        rounding_floor=whole.rounding_floor,
        modules=module_rows(run, places),
        cells=cells(run, places, lines),
        matrices=matrix_rows(run, places, lines),
        unlisted=len(run.matrices) - len(lines),
        left_out=left_out(run),
        origin=origin(run),
        outputs=outputs_view(run.outputs, places.ranks),
    )
