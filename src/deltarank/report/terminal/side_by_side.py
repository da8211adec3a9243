"""Several runs as tables with one column for each: the loss by module, and the divergence of outputs."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from deltarank.results import (
    CandidateKind,
    Logits,
    Loss,
    Results,
    figure,
    format_table,
    percent,
)

_WHOLE = "all matrices"


def runs_side_by_side(runs: Sequence[Results], *, rank: int, width: int = 100) -> str:
    """Tables over runs that have `rank` in common, then the verdict of each in a sentence.

    Args:
        rank: the rank of the table of losses; a run without it shows "-".
        width: columns of the terminal, for the sentences.
    """
    blocks = [_losses(runs, rank), _divergences(runs), _verdicts(runs, width)]
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def _table(heading: str, runs: Sequence[Results], rows: Sequence[Sequence[str]]) -> list[str]:
    header = ["", *(run.finetune.short_name for run in runs)]
    return [heading, "", *format_table([header, *rows], align="<>", indent=2, gap=3)]


def _losses(runs: Sequence[Results], rank: int) -> list[str]:
    modules = dict.fromkeys(name for run in runs for name in run.totals.by_module)
    rows = [[_WHOLE, *(_loss_cell(run.totals.losses, rank) for run in runs)]]
    for name in modules if len(modules) > 1 else ():
        totals = (run.totals.by_module.get(name) for run in runs)
        rows.append([name, *(_loss_cell(total.losses if total else (), rank) for total in totals)])
    heading = f"Loss at rank {rank}: cosine distance, and the share of the change (energy) that is lost."
    return _table(heading, runs, rows)


def _loss_cell(losses: Sequence[Loss], rank: int) -> str:
    loss = next((each for each in losses if each.rank == rank), None)
    return "-" if loss is None else f"{figure(loss.cosine_distance)} {percent(loss.energy_lost):>11}"


def _divergences(runs: Sequence[Results]) -> list[str]:
    columns = [_on_own_answers(run) for run in runs]
    names = dict.fromkeys(name for column in columns for name in column)
    if not names:
        return []
    heading = (
        "Output divergence from the finetune, on its own answers: KL divergence in nats per token, and the share of "
        "behaviour kept."
    )
    return _table(heading, runs, [[name, *(_kld_cell(column.get(name)) for column in columns)] for name in names])


def _on_own_answers(run: Results) -> Mapping[str, Logits]:
    """The logits of each candidate, without the controls."""
    if run.outputs is None:
        return {}
    own = {text.name for text in run.outputs.texts if text.own}
    return {
        candidate.name: logits
        for candidate in run.outputs.candidates
        for logits in candidate.logits
        if logits.text in own and candidate.kind is not CandidateKind.CONTROL
    }


def _kld_cell(logits: Logits | None) -> str:
    if logits is None:
        return "-"
    return f"{figure(logits.kld.mean)} {percent(logits.kept.value) if logits.kept else '':>11}"


def _verdicts(runs: Sequence[Results], width: int) -> list[str]:
    """What kind of delta each is: the second sentence of a verdict, if it has several."""
    sentences = [f"{run.finetune.short_name}: {run.verdict.sentences[:2][-1]}" for run in runs]
    return [line for text in sentences for line in textwrap.wrap(text, width, subsequent_indent="  ")]
