"""The headline of the page at each rank, and the numbers under it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from deltarank.report.view.behaviour import behaviour_at, behaviour_kept
from deltarank.report.view.page import Phrase, RunView
from deltarank.report.view.text import behaviour_percent, kept_percent, unbroken, without_joiners
from deltarank.results import ALL_ELSEWHERE, NEARLY_WHOLE, Loss, change_in_words, count, figure, percent, slot_sentence

SMALLEST_SHARE = 0.0005
"""A module with a smaller share of the change is not named as the one that loses most."""

MOST_NAMED = 3
"""More runs than these are counted instead of named."""


def headline_at(rank_index: int, rank: int, runs: Sequence[RunView]) -> tuple[Phrase, ...]:
    """About the behaviour where it was measured at this rank for all runs, else about the weights.

    "As a rank-64 LoRA, A keeps 95 % of its behaviour: 0.03 nats per token from the finetune; the base is 0.86 away."
    "As a rank-64 LoRA, A keeps 48 % and B over 99.9 % of the change in the weights."
    """
    return _of_related(runs, lambda related: _headline_at(rank_index, rank, related))


def _of_related(
    runs: Sequence[RunView], headline: Callable[[Sequence[RunView]], tuple[Phrase, ...]]
) -> tuple[Phrase, ...]:
    """The headline of the runs that compare a finetune with its base. Nothing is kept of what is no finetune."""
    unrelated = [run for run in runs if run.is_unrelated]
    related = [run for run in runs if not run.is_unrelated]
    if not unrelated:
        return headline(runs)
    if len(runs) == 1:
        return (Phrase(unbroken(runs[0].sentences[0])),)
    tail = (*_names(unrelated), Phrase(": not comparable with this base."))
    return (*headline(related), Phrase(" "), *tail) if related else tail


def _headline_at(rank_index: int, rank: int, runs: Sequence[RunView]) -> tuple[Phrase, ...]:
    kept = [share.value for run in runs if (share := behaviour_kept(run, rank_index)) is not None]
    if len(kept) < len(runs):
        return _weights_headline_at(rank_index, rank, runs)
    if len(runs) == 1:
        return Phrase(f"As a rank-{rank} LoRA, "), *behaviour_at(runs[0], rank_index)
    if len(runs) > MOST_NAMED:
        return (_range_of(rank, len(runs), [behaviour_percent(pick(kept)) for pick in (min, max)], "their behaviour"),)
    shares = [behaviour_percent(each) for each in kept]
    return _each_keeps(rank, zip(runs, shares, strict=True), "their behaviour")


def weights_headline_at(rank_index: int, rank: int, runs: Sequence[RunView]) -> tuple[Phrase, ...]:
    """ "As a rank-64 LoRA, A keeps 48 % and B over 99.9 % of the change in the weights." """
    return _of_related(runs, lambda related: _weights_headline_at(rank_index, rank, related))


def _weights_headline_at(rank_index: int, rank: int, runs: Sequence[RunView]) -> tuple[Phrase, ...]:
    if all(run.matrices_measured == 0 for run in runs):
        return (Phrase("Nothing could be measured."),)
    if len(runs) == 1 and runs[0].energy == 0 and not (unpaired := runs[0].unpaired).can_be_equal:
        return (*_names(runs), Phrase(f" has {unpaired.no_change_in(runs[0].matrices_measured)}."))
    if len(runs) == 1 and runs[0].energy == 0 and any(group.share for group in runs[0].left_out):
        measured = count(runs[0].matrices_measured, "matrix", "matrices")
        measured += f" that were measured{runs[0].unpaired.remark()}"
        return (*_names(runs), Phrase(f" changed none of the {measured}: {ALL_ELSEWHERE}."))
    if all(run.energy == 0 and run.unpaired.can_be_equal for run in runs):
        rest = runs[0].unpaired.remark() if len(runs) == 1 else ""
        return (*_names(runs), Phrase(f" changed nothing{rest}: there is nothing to lose."))
    losses = [loss for run in runs if (loss := run.losses[rank_index]) is not None]
    if not losses:
        return (*_names(runs), Phrase(f": not measured at rank {rank}."))
    if len(runs) > MOST_NAMED:
        ends = [kept_percent(pick(losses, key=lambda loss: loss.energy_kept)) for pick in (min, max)]
        is_partial = any(run.unpaired.is_notable for run in runs)
        rest = ", not counting parameters that could not be compared" if is_partial else ""
        return (_range_of(rank, len(losses), ends, f"{_change_of(runs)}{rest}"),)
    if len(runs) == 1:
        kept, rest = runs[0].unpaired.kept(losses[0].energy_lost), runs[0].unpaired.remark(losses[0].energy_lost)
        change = unbroken(f"{change_in_words(runs[0].measured_share)}{runs[0].included}{rest}")
        return _each_keeps(rank, [(runs[0], kept)], change)
    shares = ((run, _kept(run, loss)) for run in runs if (loss := run.losses[rank_index]) is not None)
    unknown = [run for run in runs if run.losses[rank_index] is None]
    tail = (Phrase(" "), *_names(unknown), Phrase(": not measured at this rank.")) if unknown else ()
    return (*_each_keeps(rank, shares, _change_of(runs)), *tail)


def _change_of(runs: Sequence[RunView]) -> str:
    is_whole = all(run.measured_share >= NEARLY_WHOLE for run in runs)
    if any(run.included for run in runs):
        return "the change in the matrices that were measured, counting some that a portable adapter leaves out"
    return "the change in the weights" if is_whole else "the change in the matrices that were measured"


def _kept(run: RunView, loss: Loss) -> str:
    """ "48 %", and what it does not count."""
    kept, rest = run.unpaired.kept(loss.energy_lost), run.unpaired.remark(loss.energy_lost).removeprefix(", ")
    return f"{kept} ({rest})" if rest else kept


def _range_of(rank: int, runs: int, ends: Sequence[str], of_what: str) -> Phrase:
    lowest, highest = map(unbroken, ends)
    spread = lowest if lowest == highest else f"{lowest} to {highest}"
    return Phrase(f"As rank-{rank} LoRAs, these {runs} finetunes keep {spread} of {of_what}.")


def _each_keeps(rank: int, shares: Iterable[tuple[RunView, str]], of_what: str) -> tuple[Phrase, ...]:
    parts: list[tuple[Phrase, ...]] = []
    for run, share in shares:
        verb = "" if parts else "keeps "
        parts.append((Phrase(run.label, is_name=True), Phrase(f" {verb}{unbroken(share)}")))
    return (Phrase(f"As a rank-{rank} LoRA, "), *_joined(parts), Phrase(f" of {of_what}."))


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
    if len(runs) > 1 or loss is None or not run.energy or run.is_unrelated:
        return ""
    errors = f"relative error {figure(loss.relative_error)}, cosine distance {figure(loss.cosine_distance)}"
    noise = run.noise[rank_index]
    parts = [f"In the weights, {percent(loss.energy_lost)} of the energy is lost at rank {rank}: {errors}."]
    parts += noise.sentences if noise else ()
    by_module = [
        (lost, row.module.label)
        for row in run.modules
        if row.module and (row.share or 0.0) > SMALLEST_SHARE and (lost := row.lost[rank_index]) is not None
    ]
    if len(by_module) > 1 and loss.relative_error > 0:
        lost, name = max(by_module, key=lambda pair: pair[0])
        parts.append(f"{name} loses most: {percent(lost)}.")
    return unbroken(" ".join(filter(None, [*parts, slot_sentence(rank)])))


def plain_text(headline: Sequence[Phrase]) -> str:
    """The sentence without its markings."""
    return without_joiners("".join(phrase.text for phrase in headline))
