"""Several runs as tables: the divergence of outputs, and the loss in the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from deltarank.report.terminal.fitting import wrapped
from deltarank.report.terminal.runs_as_rows import behaviour_of_runs, energy_of_runs
from deltarank.report.view.build import page_data
from deltarank.report.view.chart_rows import ALL_MATRICES
from deltarank.report.view.outputs import OutputsView
from deltarank.report.view.page import PageData
from deltarank.report.view.text import behaviour_percent
from deltarank.results import CandidateKind, Logits, Loss, Results, figure, format_table, percent

_Row = Sequence[str]


def runs_side_by_side(runs: Sequence[Results], *, rank: int, width: int = 100) -> str:
    """Tables with a column for each run, or with a row for each where the columns do not fit, and what each run is.

    Args:
        rank: the rank of the table of losses; a run without it shows "-".
        width: columns of the terminal.
    """
    page = page_data(runs)
    columns = [_on_own_answers(run.outputs) for run in page.runs]
    tables = [_divergences(page, columns, width), _losses(page, runs, rank, width)]
    if any(len(line) > width for table in tables for line in table):
        tables = [behaviour_of_runs(page, columns, rank, width), energy_of_runs(page, rank, width)]
    blocks = [*tables, [] if page.shows_one_run else _verdicts(page, width)]
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def _table(heading: str, page: PageData, rows: Sequence[_Row], width: int) -> list[str]:
    header = ["", *(run.label for run in page.runs)]
    return [*wrapped(heading, width), "", *format_table([header, *rows], align="<>", indent=2, gap=3)]


def _losses(page: PageData, runs: Sequence[Results], rank: int, width: int) -> list[str]:
    rows = [[ALL_MATRICES, *(_loss_cell(run.totals.losses, rank) for run in runs)]]
    for module in page.modules if len(page.modules) > 1 else ():
        totals = (run.totals.by_module.get(module.name) for run in runs)
        rows.append([module.label, *(_loss_cell(total.losses if total else (), rank) for total in totals)])
    heading = f"Loss at rank {rank}: cosine distance, and the share of the change (energy) that is lost."
    return _table(heading, page, rows, width)


def _loss_cell(losses: Sequence[Loss], rank: int) -> str:
    loss = next((each for each in losses if each.rank == rank), None)
    return "-" if loss is None else f"{figure(loss.cosine_distance)} {percent(loss.energy_lost):>11}"


def _divergences(page: PageData, columns: Sequence[Mapping[str, Logits]], width: int) -> list[str]:
    names = dict.fromkeys(name for column in sorted(columns, key=len, reverse=True) for name in column)
    if not names:
        return []
    heading = (
        "Output divergence from the finetune, on its own answers: KL divergence in nats per token, and the share of "
        "behaviour kept."
    )
    rows = [[name, *(_kld_cell(column.get(name)) for column in columns)] for name in names]
    return _table(heading, page, rows, width)


def _on_own_answers(outputs: OutputsView | None) -> Mapping[str, Logits]:
    """The logits of each candidate, without the controls."""
    if outputs is None or not any(text.own for text in outputs.texts):
        return {}
    return {
        candidate.name: logits
        for candidate in outputs.candidates
        if (logits := candidate.logits[outputs.default_text]) and candidate.kind is not CandidateKind.CONTROL
    }


def _kld_cell(logits: Logits | None) -> str:
    if logits is None:
        return "-"
    kept = behaviour_percent(logits.kept.value).replace("\u2212", "-") if logits.kept else ""
    return f"{figure(logits.kld.mean)} {kept:>11}"


def _verdicts(page: PageData, width: int) -> list[str]:
    """What kind of delta each is."""
    sentences = [f"{run.label}: {(*run.opening, *run.sentences)[0]}" for run in page.runs]
    return [line for text in sentences for line in wrapped(text, width, indent="  ")]
