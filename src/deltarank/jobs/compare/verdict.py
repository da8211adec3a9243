"""The verdict of a comparison: what kind of delta this is and what a LoRA loses of it, in words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from deltarank.jobs.compare.common_rank import common_rank
from deltarank.results import (
    ALL_ELSEWHERE,
    SERVABLE_RANKS,
    Loss,
    MatrixResult,
    Outcome,
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
    slot_for,
)

UNRELATED = 0.9
"""From this ||D|| / ||W0|| on, the pair is unrelated: independently trained models differ by about sqrt(2)."""

MOSTLY_ROUNDING = 0.5

ERRORS = (0.10, 0.05)


def judge(
    matrices: Sequence[MatrixResult], skipped: Sequence[Skipped], name: str, *, lora_ranks: Sequence[int] | None = None
) -> Verdict:
    """The verdict on a run.

    Args:
        name: what a reader calls the finetune.
        lora_ranks: those of the adapter that is the finetune; None of stored weights.
    """
    totals = Totals.of(matrices)
    whole = totals.whole
    if not whole.matrices:
        return Verdict(VerdictKind.UNKNOWN, ("Nothing could be measured.", *_unmeasured(matrices)))
    failed = [m for m in matrices if not m.has_losses]
    unpaired = Unpaired.of([m for m in matrices if m.has_losses], skipped, failed)
    kind, rank = _kind(matrices, whole, unpaired, lora_ranks)
    sides = [m.max_rank for m in matrices if m.has_losses]
    loss = whole.loss(headline_rank([x.rank for x in whole.losses], max(sides)))
    sentences = [
        *_headline(kind, loss, whole, unpaired, name, share=measured_share(skipped)),
        *(_adapter(lora_ranks) if lora_ranks else ()),
        *_nature(kind, rank, whole, unpaired, matrices),
    ]
    if whole.energy and kind is not VerdictKind.UNRELATED:
        sentences += [
            *_cosine(loss),
            *noise_shares(matrices, loss.rank).sentences,
            *_worst(totals, loss.rank),
            *_needed(matrices, whole),
        ]
    sentences += [*_unmeasured(matrices), *_left_out(skipped)]
    return Verdict(kind, tuple(sentences), rank)


def _kind(
    matrices: Sequence[MatrixResult], whole: Total, unpaired: Unpaired, lora_ranks: Sequence[int] | None
) -> tuple[VerdictKind, int | None]:
    if whole.energy == 0:
        return VerdictKind.IDENTICAL if unpaired.is_complete else VerdictKind.UNKNOWN, None
    if lora_ranks is not None:
        return VerdictKind.ADAPTER, max(lora_ranks, default=None)
    floor = whole.rounding_floor or 0.0
    rank = common_rank([m for m in matrices if m.outcome is Outcome.MEASURED])
    if rank and floor < MOSTLY_ROUNDING:
        return VerdictKind.MERGED_LORA, rank
    if (whole.relative_norm or 0.0) >= UNRELATED:
        return VerdictKind.UNRELATED, None
    return (VerdictKind.ROUNDING if floor >= MOSTLY_ROUNDING else VerdictKind.FULL), None


def _headline(
    kind: VerdictKind, loss: Loss, whole: Total, unpaired: Unpaired, name: str, *, share: float
) -> Iterator[str]:
    """`share` is that of the whole change in the measured matrices."""
    if kind is VerdictKind.UNKNOWN:
        yield f"{name} has {unpaired.no_change_in(whole.matrices)}."
        return
    if kind is VerdictKind.IDENTICAL and share < 1:
        measured = count(whole.matrices, "matrix", "matrices")
        yield f"{name} equals the base in the {measured} that were measured: {ALL_ELSEWHERE}."
        return
    if kind is VerdictKind.IDENTICAL:
        yield f"{name} equals the base in the {count(whole.matrices, 'matrix', 'matrices')} that were measured."
        return
    if kind is VerdictKind.UNRELATED:
        yield (
            f"{name} is not a finetune of this base: they differ by {percent(whole.relative_norm)} of the base's norm"
            f"{unpaired.remark()}. Give the base that it was trained from."
        )
        return
    kept, remark = unpaired.kept(loss.energy_lost), unpaired.remark(loss.energy_lost)
    yield f"As a rank-{loss.rank} LoRA, {name} keeps {kept} of {change_in_words(share)}{remark}."


def _adapter(ranks: Sequence[int]) -> Iterator[str]:
    of_rank = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
    yield f"This is a LoRA adapter of {of_rank} on the base."


def _nature(
    kind: VerdictKind, rank: int | None, whole: Total, unpaired: Unpaired, matrices: Sequence[MatrixResult]
) -> Iterator[str]:
    floor = percent(whole.rounding_floor)
    this = "What was compared" if unpaired.is_notable else "This"
    if kind is VerdictKind.MERGED_LORA:
        rest = f": the rest of the change, {floor}, is storage rounding" if whole.rounding_floor else ""
        yield f"{this} looks like a merged LoRA of rank about {rank}{rest}."
    elif kind is VerdictKind.ROUNDING:
        yield (
            f"Rounding to the storage dtype alone explains {floor} of this delta, so what a LoRA loses may be noise "
            "rather than finetuning."
        )
    elif kind is VerdictKind.FULL:
        yield f"{this} is a full finetune or a merge: the change is spread over {_spread(matrices)}."


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
    losses = {name: total.loss(rank) for name, total in totals.by_module.items() if total.energy > 0}
    if len(losses) > 1:
        name = max(losses, key=lambda each: losses[each].energy_lost)
        if losses[name].energy_lost >= 0.005:
            yield f"The module that loses most is {name}: {percent(losses[name].energy_lost)} at rank {rank}."


def _needed(matrices: Sequence[MatrixResult], whole: Total) -> Iterator[str]:
    """The ranks at which the relative error is at most 10 % and 5 %."""
    ten, five = (_rank_for(error, matrices, whole) for error in ERRORS)
    if ten == five:
        yield f"A relative error of at most 10 %, or of 5 %, needs {ten}."
    else:
        yield f"A relative error of at most 10 % needs {ten}; of 5 %, {five}."


def _rank_for(error: float, matrices: Sequence[MatrixResult], whole: Total) -> str:
    enough = [loss.rank for loss in whole.losses if loss.relative_error <= error]
    if enough:
        slot = slot_for(enough[0])
        return f"rank {enough[0]}" + ("" if slot in (enough[0], None) else f" (in vLLM a slot of rank {slot})")
    highest = whole.losses[-1].rank
    beyond = _estimated_rank(error, matrices)
    if highest < SERVABLE_RANKS[-1] and (beyond is None or beyond <= SERVABLE_RANKS[-1]):
        about = f" (estimated: {beyond:,})" if beyond else ""
        return f"a rank above {highest}, the highest measured{about}"
    about = f" (estimated: {beyond:,})" if beyond else ""
    return f"a higher rank than vLLM can load{about}"


def _estimated_rank(error: float, matrices: Sequence[MatrixResult]) -> int | None:
    """By bisection over the curves of all matrices, to two digits; None if a curve is not known to its end."""
    rows = [m for m in matrices if m.outcome is Outcome.MEASURED]
    if any(not m.curve or m.curve[-1][0] < m.max_rank for m in rows):
        return None
    total = math.fsum(m.energy for m in rows)
    low, high = 1, max(m.max_rank for m in rows)
    while low < high:
        middle = (low + high) // 2
        lost = math.fsum(m.energy * _lost_at(m, middle) for m in rows)
        low, high = (low, middle) if lost <= error**2 * total else (middle + 1, high)
    step: int = 10 ** max(len(str(low)) - 2, 0)
    return math.ceil(low / step) * step


def _lost_at(matrix: MatrixResult, rank: int) -> float:
    """Interpolates linearly in (log rank, energy lost) between the points of the curve."""
    before = (1, 1.0)
    for at, energy_kept in matrix.curve:
        if at >= rank:
            if at == before[0]:
                return 1 - energy_kept
            share = (math.log(rank) - math.log(before[0])) / (math.log(at) - math.log(before[0]))
            return before[1] + share * ((1 - energy_kept) - before[1])
        before = (at, 1 - energy_kept)
    return 0.0


def _unmeasured(matrices: Sequence[MatrixResult]) -> Iterator[str]:
    names = [m.name for m in matrices if not m.has_losses]
    if names:
        is_one = len(names) == 1
        yield f"{count(len(names), 'matrix', 'matrices')} could not be measured: {listing(names, most=3)}" + (
            f" ({next(m.reason for m in matrices if not m.has_losses)})." if is_one else "."
        )


def _left_out(skipped: Sequence[Skipped]) -> Iterator[str]:
    changed = [s for s in skipped if s.energy]
    share = math.fsum(s.share for s in changed if s.share is not None)
    if share >= 0.0005:
        yield (
            f"{percent(share)} of the whole change is in {count(len(changed), 'tensor')} that "
            f"{'was' if len(changed) == 1 else 'were'} not measured ({', '.join(_outcomes(changed))})."
        )


def _outcomes(skipped: Sequence[Skipped]) -> list[str]:
    words = {
        Outcome.NOT_A_MATRIX: "norms, biases and other tensors of no linear layer",
        Outcome.EMBEDDING: "embeddings and output head",
        Outcome.TIED: "a tied output head",
    }
    return list(dict.fromkeys(words.get(s.outcome, s.outcome.value.replace("_", " ")) for s in skipped))
