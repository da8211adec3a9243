"""The page's own sentence at each rank: who keeps how much of what finetuning changed."""

from __future__ import annotations

from collections.abc import Sequence

from deltarank.report.view.modules import Module
from deltarank.report.view.page import Phrase, RunView
from deltarank.report.view.text import kept_percent, lost_percent, unbroken
from deltarank.results import SERVABLE_RANKS, Loss, figure, percent

MOST_NAMED = 3
"""More runs than these are counted rather than named."""


def headlines(ranks: Sequence[int], runs: Sequence[RunView]) -> tuple[tuple[Phrase, ...], ...]:
    """A sentence for each rank."""
    return tuple(_headline(rank, i, runs) for i, rank in enumerate(ranks))


def _headline(rank: int, place: int, runs: Sequence[RunView]) -> tuple[Phrase, ...]:
    if all(run.matrices_measured == 0 for run in runs):
        return (Phrase("Nothing could be measured."),)
    if all(run.energy == 0 for run in runs):
        return (*_names(runs), Phrase(" changed nothing: there is nothing to lose."))
    known = [run for run in runs if run.losses[place] is not None]
    if not known:
        return (*_names(runs), Phrase(f": not measured at rank {rank}."))
    if len(runs) > MOST_NAMED:
        return _counted(rank, place, known)
    return _named(rank, place, runs)


def _names(runs: Sequence[RunView]) -> tuple[Phrase, ...]:
    if len(runs) > MOST_NAMED:
        return (Phrase(f"{len(runs)} finetunes"),)
    return _joined([(Phrase(run.label, name=True),) for run in runs])


def _named(rank: int, place: int, runs: Sequence[RunView]) -> tuple[Phrase, ...]:
    """ "As a rank-64 LoRA, A keeps 48 % and B over 99.9 % of what finetuning changed. C was not measured at ..." """
    parts: list[tuple[Phrase, ...]] = []
    for run in runs:
        if (loss := run.losses[place]) is not None:
            verb = " " if parts else " keeps "
            parts.append((Phrase(run.label, name=True), Phrase(verb + unbroken(kept_percent(loss)))))
    unknown = [run for run in runs if run.losses[place] is None]
    tail = (Phrase(" "), *_names(unknown), Phrase(": not measured at this rank.")) if unknown else ()
    return (Phrase(f"As a rank-{rank} LoRA, "), *_joined(parts), Phrase(" of what finetuning changed."), *tail)


def _counted(rank: int, place: int, runs: Sequence[RunView]) -> tuple[Phrase, ...]:
    losses: list[Loss] = sorted(
        (loss for run in runs if (loss := run.losses[place]) is not None), key=lambda loss: loss.energy_kept
    )
    low, high = (unbroken(kept_percent(loss)) for loss in (losses[0], losses[-1]))
    return (
        Phrase(f"As rank-{rank} LoRAs, these {len(losses)} finetunes keep "),
        Phrase(low if low == high else f"{low} to {high}"),
        Phrase(" of what finetuning changed."),
    )


def _joined(parts: Sequence[tuple[Phrase, ...]]) -> tuple[Phrase, ...]:
    result: list[Phrase] = []
    for i, part in enumerate(parts):
        if i:
            result.append(Phrase(" and " if i == len(parts) - 1 else ", "))
        result.extend(part)
    return tuple(result)


def figures(ranks: Sequence[int], runs: Sequence[RunView], modules: Sequence[Module]) -> tuple[str, ...]:
    """The numbers behind the sentence, for each rank; empty where several runs have a table of them."""
    if len(runs) > 1:
        return ("",) * len(ranks)
    return tuple(_figures(rank, i, runs[0], modules) for i, rank in enumerate(ranks))


def _figures(rank: int, place: int, run: RunView, modules: Sequence[Module]) -> str:
    loss = run.losses[place]
    if loss is None or not run.energy:
        return ""
    errors = f"relative error {figure(loss.relative_error)}, cosine distance {figure(loss.cosine_distance)}"
    parts = [f"At rank {rank}, {lost_percent(loss)} of the energy is lost: {errors}."]
    known = [(lost, row) for row in run.modules if (lost := row.lost[place]) is not None and row.share]
    if len(known) > 1 and loss.relative_error > 0:
        lost, row = max(known, key=lambda pair: pair[0])
        parts.append(f"{modules[row.module].label} loses most: {percent(lost)}.")
    if rank not in SERVABLE_RANKS:
        parts.append(f"vLLM loads no adapter of rank {rank}.")
    return unbroken(" ".join(parts))


def plain(headline: Sequence[Phrase]) -> str:
    """The sentence without its markings."""
    return "".join(phrase.text for phrase in headline)
