"""The page's own sentence at each rank: who keeps how much of what finetuning changed."""

from __future__ import annotations

from collections.abc import Sequence

from deltarank.report._data import Phrase, RunView
from deltarank.report._text import kept_percent, unbroken
from deltarank.results import Loss

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
    parts = []
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


def plain(headline: Sequence[Phrase]) -> str:
    """The sentence without its markings."""
    return "".join(phrase.text for phrase in headline)
