"""The verdict of a comparison: what kind of delta this is and what a LoRA loses of it, in words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from deltarank.jobs.compare.common_rank import common_rank, is_exact, without_base_rounding
from deltarank.jobs.compare.left_out import LeftOutOfLora
from deltarank.jobs.compare.rank_needed import RankNeeded, by_behaviour
from deltarank.jobs.compare.unlike_matrices import UNRELATED, UnlikeMatrices
from deltarank.results import (
    ALL_ELSEWHERE,
    OPENED_KINDS,
    AddedAdapter,
    IncludedByName,
    Loss,
    MatrixResult,
    Outcome,
    Outputs,
    Skipped,
    Total,
    Totals,
    Unpaired,
    Verdict,
    VerdictKind,
    change_in_words,
    count,
    figure,
    headline_rank,
    listing,
    measured_share,
    noise_shares,
    percent,
)

MOSTLY_ROUNDING = 0.9
"""If rounding explains this share of the change, nothing is said of what kind of finetune it is."""

NOTHING_KEPT = ", and a LoRA on the measured matrices keeps nothing of it"

SMALLEST_SHARE = 0.0005
"""A smaller share of the change is not mentioned."""


def judge(
    matrices: Sequence[MatrixResult],
    skipped: Sequence[Skipped],
    name: str,
    *,
    adapter: AddedAdapter | None = None,
    outputs: Outputs | None = None,
) -> Verdict:
    """The verdict on the weights of a run.

    Args:
        name: what a reader calls the finetune.
        adapter: the one that is the finetune; None of stored weights.
        outputs: if they were measured, they say which rank is needed and what limits it.
    """
    totals = Totals.of(matrices)
    whole = totals.whole
    if not whole.matrices:
        return Verdict(VerdictKind.UNKNOWN, ("Nothing could be measured.", *_unmeasured(matrices)))
    failed = [m for m in matrices if not m.has_losses]
    unpaired = Unpaired.of([m for m in matrices if m.has_losses], skipped, failed, adapter)
    kind, rank = _kind(matrices, whole, unpaired, adapter)
    unlike = UnlikeMatrices.of(matrices) if kind in (VerdictKind.FULL, VerdictKind.UNRELATED) else None
    if unlike is not None:
        headline = f"{name} can be compared with this base only in part{unpaired.remark()}: {unlike.sentence}"
        return Verdict(VerdictKind.UNRELATED, (headline, *_unmeasured(matrices)))
    loss = whole.loss(_headline_rank(matrices, whole, outputs))
    included = IncludedByName.of(matrices)
    left_out = LeftOutOfLora.of(skipped, included)
    share = measured_share(skipped)
    sentences = [*_headline(kind, loss, whole, unpaired, name, share=share, change=change_in_words(share, included))]
    if kind in OPENED_KINDS:
        needed = RankNeeded.of(matrices, whole)
        by_outputs = [*by_behaviour(outputs)] if outputs else []
        by_weights = needed.of_lora(rank, is_only=not by_outputs) if rank else needed.of_full_finetune()
        nature = (
            _adapter(adapter.ranks) if adapter and adapter.ranks else _nature(kind, rank, whole, unpaired, matrices)
        )
        sentences += [nature, *(by_outputs or [by_weights]), left_out.sentence(loss, outputs)]
        sentences += [*(by_outputs and [by_weights]), *_cosine(loss)]
        sentences += [*noise_shares(matrices, loss.rank).sentences, *_worst(totals, loss.rank)]
    elif left_out.share >= SMALLEST_SHARE:
        sentences.append(f"{left_out.elsewhere}{NOTHING_KEPT if kind is VerdictKind.IDENTICAL else ''}.")
    return Verdict(kind, (*sentences, *_unmeasured(matrices)), rank)


def _headline_rank(matrices: Sequence[MatrixResult], whole: Total, outputs: Outputs | None) -> int:
    """Among the ranks of the outputs that were measured in the weights, too."""
    ranks = [loss.rank for loss in whole.losses]
    shared = [rank for rank in (outputs.ranks if outputs else ()) if rank in ranks]
    return headline_rank(shared or ranks, max(m.max_rank for m in matrices if m.has_losses))


def _kind(
    matrices: Sequence[MatrixResult], whole: Total, unpaired: Unpaired, adapter: AddedAdapter | None
) -> tuple[VerdictKind, int | None]:
    if whole.energy == 0:
        return VerdictKind.IDENTICAL if unpaired.can_be_equal else VerdictKind.UNKNOWN, None
    if adapter is not None:
        return VerdictKind.ADAPTER, max(adapter.ranks, default=None)
    floor = whole.rounding_floor or 0.0
    measured = [m for m in matrices if m.outcome is Outcome.MEASURED]
    rank = common_rank(measured) or common_rank(without_base_rounding(measured))
    if rank and floor < MOSTLY_ROUNDING:
        return VerdictKind.MERGED_LORA, rank
    if (whole.relative_norm or 0.0) >= UNRELATED:
        return VerdictKind.UNRELATED, None
    return (VerdictKind.ROUNDING if floor >= MOSTLY_ROUNDING else VerdictKind.FULL), None


def _headline(
    kind: VerdictKind, loss: Loss, whole: Total, unpaired: Unpaired, name: str, *, share: float, change: str
) -> Iterator[str]:
    """`share` is that of the whole change in the measured matrices; `change`, what is kept of it, in words."""
    if kind is VerdictKind.UNKNOWN:
        yield f"{name} has {unpaired.no_change_in(whole.matrices)}."
        return
    if kind is VerdictKind.IDENTICAL and share < 1:
        measured = count(whole.matrices, "matrix", "matrices")
        yield f"{name} changed none of the {measured} that were measured{unpaired.remark()}: {ALL_ELSEWHERE}."
        return
    if kind is VerdictKind.IDENTICAL:
        measured = count(whole.matrices, "matrix", "matrices")
        yield f"{name} equals the base in the {measured} that were measured{unpaired.remark()}."
        return
    if kind is VerdictKind.UNRELATED:
        yield (
            f"{name} is not a finetune of this base: they differ by {percent(whole.relative_norm)} of the base's norm"
            f"{unpaired.remark()}. Give the base that it was trained from."
        )
        return
    kept, remark = unpaired.kept(loss.energy_lost), unpaired.remark(loss.energy_lost)
    yield f"As a rank-{loss.rank} LoRA, {name} keeps {kept} of {change}{remark}."


def _adapter(ranks: Sequence[int]) -> str:
    of_rank = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
    return f"This is a LoRA adapter of {of_rank} on the base."


def _nature(
    kind: VerdictKind, rank: int | None, whole: Total, unpaired: Unpaired, matrices: Sequence[MatrixResult]
) -> str:
    floor = percent(whole.rounding_floor)
    this = "What was compared" if unpaired.is_notable else "This"
    if kind is VerdictKind.MERGED_LORA:
        rest = f": the rest of the change, {floor}, is storage rounding" if whole.rounding_floor else ""
        measured = [m for m in matrices if m.outcome is Outcome.MEASURED]
        if common_rank(measured) is None:
            made = math.fsum((m.base_rounding or 0.0) * m.energy for m in matrices) / whole.energy
            rest = f": about {percent(min(made, 1.0))} of the change is the rounding of the quantised base"
        about = "" if rank and is_exact(measured, rank) else "about "
        return f"{this} looks like a merged LoRA of rank {about}{rank}{rest}."
    if kind is VerdictKind.ROUNDING:
        return (
            f"Rounding to the storage dtype alone explains {floor} of this delta, so what a LoRA loses may be noise "
            "rather than finetuning."
        )
    return f"{this} is a full finetune or a merge: the change is spread over {_spread(matrices)}."


def _spread(matrices: Sequence[MatrixResult]) -> str:
    ranks = sorted(m.effective_rank / m.max_rank for m in matrices if m.effective_rank)
    if not ranks:
        return "more directions than were computed"
    return f"many directions (effective rank: {percent(ranks[len(ranks) // 2])} of the largest possible, at the median)"


def _cosine(loss: Loss) -> Iterator[str]:
    if 0.005 <= loss.cosine_distance < 1:
        yield (
            f"{percent(loss.energy_lost)} of the change is lost. The cosine distance, {figure(loss.cosine_distance)}, "
            "makes this look smaller than it is."
        )


def _worst(totals: Totals, rank: int) -> Iterator[str]:
    least = SMALLEST_SHARE * totals.whole.energy
    losses = {name: total.loss(rank) for name, total in totals.by_module.items() if total.energy > least}
    if len(losses) > 1:
        name = max(losses, key=lambda each: losses[each].energy_lost)
        if losses[name].energy_lost >= 0.005:
            yield f"The module that loses most is {name}: {percent(losses[name].energy_lost)} at rank {rank}."


def _unmeasured(matrices: Sequence[MatrixResult]) -> Iterator[str]:
    names = [m.name for m in matrices if not m.has_losses]
    if names:
        is_one = len(names) == 1
        yield f"{count(len(names), 'matrix', 'matrices')} could not be measured: {listing(names, most=3)}" + (
            f" ({next(m.reason for m in matrices if not m.has_losses)})." if is_one else "."
        )
