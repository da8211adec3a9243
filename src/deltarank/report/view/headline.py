"""The headline of the page at each rank, and the numbers under it."""

from __future__ import annotations

from collections.abc import Sequence

from deltarank.report.view.page import Phrase, RunView
from deltarank.report.view.text import kept_percent, unbroken
from deltarank.results import SERVABLE_RANKS, figure, percent

MOST_NAMED = 3
"""More runs than these are counted instead of named."""


def headline_at(rank_index: int, rank: int, runs: Sequence[RunView]) -> tuple[Phrase, ...]:
    """ "As a rank-64 LoRA, A keeps 48 % and B over 99.9 % of what finetuning changed." """
    if all(run.matrices_measured == 0 for run in runs):
        return (Phrase("Nothing could be measured."),)
    if all(run.energy == 0 for run in runs):
        return (*_names(runs), Phrase(" changed nothing: there is nothing to lose."))
    losses = [loss for run in runs if (loss := run.losses[rank_index]) is not None]
    if not losses:
        return (*_names(runs), Phrase(f": not measured at rank {rank}."))
    if len(runs) > MOST_NAMED:
        lowest, highest = (
            unbroken(kept_percent(pick(losses, key=lambda loss: loss.energy_kept))) for pick in (min, max)
        )
        spread = lowest if lowest == highest else f"{lowest} to {highest}"
        return (
            Phrase(f"As rank-{rank} LoRAs, these {len(losses)} finetunes keep {spread} of what finetuning changed."),
        )
    return _named(rank_index, rank, runs)


def _named(rank_index: int, rank: int, runs: Sequence[RunView]) -> tuple[Phrase, ...]:
    parts: list[tuple[Phrase, ...]] = []
    for run in runs:
        if (loss := run.losses[rank_index]) is not None:
            verb = "" if parts else "keeps "
            parts.append((Phrase(run.label, is_name=True), Phrase(f" {verb}{unbroken(kept_percent(loss))}")))
    unknown = [run for run in runs if run.losses[rank_index] is None]
    tail = (Phrase(" "), *_names(unknown), Phrase(": not measured at this rank.")) if unknown else ()
    return (Phrase(f"As a rank-{rank} LoRA, "), *_joined(parts), Phrase(" of what finetuning changed."), *tail)


def _names(runs: Sequence[RunView]) -> tuple[Phrase, ...]:
    if len(runs) > MOST_NAMED:
        return (Phrase(f"{len(runs)} finetunes"),)
    return _joined([(Phrase(run.label, is_name=True),) for run in runs])


def _joined(parts: Sequence[tuple[Phrase, ...]]) -> tuple[Phrase, ...]:
    result: list[Phrase] = []
    for i, part in enumerate(parts):
        if i:
            result.append(Phrase(" and " if i == len(parts) - 1 else ", "))
        result.extend(part)
    return tuple(result)


def figures_at(rank_index: int, rank: int, runs: Sequence[RunView]) -> str:
    """The numbers behind the headline; empty for several runs, which have a table of them."""
    run = runs[0]
    loss = run.losses[rank_index]
    if len(runs) > 1 or loss is None or not run.energy:
        return ""
    errors = f"relative error {figure(loss.relative_error)}, cosine distance {figure(loss.cosine_distance)}"
    parts = [f"At rank {rank}, {percent(loss.energy_lost)} of the energy is lost: {errors}."]
    by_module = [
        (lost, row.module.label)
        for row in run.modules
        if row.module and row.share and (lost := row.lost[rank_index]) is not None
    ]
    if len(by_module) > 1 and loss.relative_error > 0:
        lost, name = max(by_module, key=lambda pair: pair[0])
        parts.append(f"{name} loses most: {percent(lost)}.")
    if rank not in SERVABLE_RANKS:
        parts.append(f"vLLM does not accept rank {rank}.")
    return unbroken(" ".join(parts))


def plain_text(headline: Sequence[Phrase]) -> str:
    """The sentence without its markings."""
    return "".join(phrase.text for phrase in headline)
