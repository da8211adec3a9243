"""What kind of delta this is, in plain words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from deltarank.results import (
    SERVABLE_RANKS,
    Loss,
    MatrixResult,
    Outcome,
    Skipped,
    Total,
    Totals,
    Verdict,
    VerdictKind,
    count,
    figure,
    headline_rank,
    listing,
    percent,
)

UNRELATED = 0.9
"""||D|| / ||W0|| from here on is no finetune's: two models that have nothing in common differ by about 1.4."""

MOSTLY_ROUNDING = 0.5
LOW_RANK_SHARE = 0.8
"""A merged LoRA shows its rank in nearly all matrices that it touched."""

ERRORS = (0.10, 0.05)


def judge(matrices: Sequence[MatrixResult], skipped: Sequence[Skipped], name: str) -> Verdict:
    """The verdict over a run. `name` is what a reader calls the finetune."""
    totals = Totals.of(matrices)
    whole = totals.whole
    if not whole.matrices:
        return Verdict(VerdictKind.UNKNOWN, ("Nothing could be measured.", *_unmeasured(matrices)))
    kind, rank = _kind(matrices, whole)
    sides = [m.max_rank for m in matrices if m.has_losses]
    loss = whole.loss(headline_rank([x.rank for x in whole.losses], max(sides)))
    sentences = [*_headline(kind, loss, whole, name), *_nature(kind, rank, whole, matrices)]
    if kind not in (VerdictKind.IDENTICAL, VerdictKind.UNRELATED):
        sentences += [*_cosine(loss), *_worst(totals, loss.rank), *_needed(matrices, whole)]
    sentences += [*_unmeasured(matrices), *_left_out(skipped)]
    return Verdict(kind, tuple(sentences), rank)


def _kind(matrices: Sequence[MatrixResult], whole: Total) -> tuple[VerdictKind, int | None]:
    if whole.energy == 0:
        return VerdictKind.IDENTICAL, None
    if (whole.relative_norm or 0.0) >= UNRELATED:
        return VerdictKind.UNRELATED, None
    if (whole.rounding_floor or 0.0) >= MOSTLY_ROUNDING:
        return VerdictKind.ROUNDING, None
    rank = _common_rank([m for m in matrices if m.outcome is Outcome.MEASURED])
    return (VerdictKind.MERGED_LORA, rank) if rank else (VerdictKind.FULL, None)


def _common_rank(measured: Sequence[MatrixResult]) -> int | None:
    """The signal rank that nearly all matrices stay under, if it is low and nothing but rounding lies beyond it."""
    low = sorted(m.signal_rank for m in measured if m.signal_rank is not None and _is_low(m))
    if len(low) < LOW_RANK_SHARE * len(measured) or not low[-1]:
        return None
    return max(low[math.ceil(LOW_RANK_SHARE * len(low)) - 1], 1)


def _is_low(matrix: MatrixResult) -> bool:
    """Few directions stand above the noise, and what lies beyond them is no more than rounding explains."""
    assert matrix.signal_rank is not None
    if matrix.max_rank > 4 and matrix.signal_rank > matrix.max_rank / 4:
        return False
    beyond = matrix.energy - math.fsum(s * s for s in matrix.singular_values[: matrix.signal_rank])
    return beyond <= (2 * (matrix.rounding_floor or 0.0) + 1e-3) * matrix.energy


def _headline(kind: VerdictKind, loss: Loss, whole: Total, name: str) -> Iterator[str]:
    if kind is VerdictKind.IDENTICAL:
        yield f"{name} changed nothing in the {count(whole.matrices, 'matrix', 'matrices')} that were measured."
        return
    if kind is VerdictKind.UNRELATED:
        yield (
            f"{name} is no finetune of this base: it differs by {percent(whole.relative_norm)} of the base's own size. "
            "Give the base that it was trained from."
        )
        return
    yield f"As a rank-{loss.rank} LoRA, {name} keeps {kept(loss)} of what finetuning changed."


def _nature(kind: VerdictKind, rank: int | None, whole: Total, matrices: Sequence[MatrixResult]) -> Iterator[str]:
    floor = percent(whole.rounding_floor)
    if kind is VerdictKind.MERGED_LORA:
        yield (
            f"This looks like a merged LoRA of rank about {rank}: beyond that, only storage rounding is left "
            f"({floor} of the change)."
        )
    elif kind is VerdictKind.ROUNDING:
        yield (
            f"This delta is at or under the rounding floor: rounding to the stored type alone explains {floor} of it, "
            "so what a LoRA loses may be noise rather than finetuning."
        )
    elif kind is VerdictKind.FULL:
        yield f"This is a full finetune or a merge: the change is spread over {_spread(matrices)}."


def _spread(matrices: Sequence[MatrixResult]) -> str:
    ranks = sorted(m.effective_rank / m.max_rank for m in matrices if m.effective_rank)
    if not ranks:
        return "more directions than were computed"
    return f"many directions (effective rank: {percent(ranks[len(ranks) // 2])} of the largest possible, at the median)"


def _cosine(loss: Loss) -> Iterator[str]:
    if 0.005 <= loss.cosine_distance < 1:
        yield (
            f"Its cosine distance is {figure(loss.cosine_distance)}, which hides how much that is: "
            f"{percent(loss.energy_lost)} of the energy is gone (at 0.3, half of it)."
        )


def _worst(totals: Totals, rank: int) -> Iterator[str]:
    losses = {name: total.loss(rank) for name, total in totals.by_module.items() if total.energy > 0}
    if len(losses) > 1:
        name = max(losses, key=lambda each: losses[each].energy_lost)
        if losses[name].energy_lost >= 0.005:
            yield f"{name} loses the most: {percent(losses[name].energy_lost)} at rank {rank}."


def _needed(matrices: Sequence[MatrixResult], whole: Total) -> Iterator[str]:
    """Which rank brings the relative error down to 10 and to 5 %."""
    ten, five = (_rank_for(error, matrices, whole) for error in ERRORS)
    if ten == five:
        yield f"A relative error of 10 % takes {ten}, and so does one of 5 %."
    else:
        yield f"A relative error of 10 % takes {ten}; 5 % takes {five}."


def _rank_for(error: float, matrices: Sequence[MatrixResult], whole: Total) -> str:
    enough = [loss.rank for loss in whole.losses if loss.relative_error <= error]
    if enough:
        return f"rank {enough[0]}" + ("" if enough[0] in SERVABLE_RANKS else " (which vLLM does not load)")
    highest = whole.losses[-1].rank
    beyond = _estimated_rank(error, matrices)
    if highest < SERVABLE_RANKS[-1] and (beyond is None or beyond <= SERVABLE_RANKS[-1]):
        about = f" (about {beyond:,})" if beyond else ""
        return f"more than rank {highest}, the highest measured{about}"
    about = f" (about {beyond:,} would do)" if beyond else ""
    return f"a higher rank than vLLM loads{about}"


def _estimated_rank(error: float, matrices: Sequence[MatrixResult]) -> int | None:
    """By bisection over the curves of all matrices, in two digits; None if one of them ends early."""
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
    """Between the points of the curve, straight in (log rank, energy lost)."""
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
            f"{percent(share)} of the whole change lies in {count(len(changed), 'tensor')} that "
            f"{'was' if len(changed) == 1 else 'were'} not measured ({', '.join(_outcomes(changed))})."
        )


def _outcomes(skipped: Sequence[Skipped]) -> list[str]:
    words = {
        Outcome.NOT_A_MATRIX: "norms and biases",
        Outcome.EMBEDDING: "embeddings and output head",
        Outcome.TIED: "a tied output head",
    }
    return list(dict.fromkeys(words.get(s.outcome, s.outcome.value.replace("_", " ")) for s in skipped))


def kept(loss: Loss) -> str:
    """The energy kept: a loss too small for 1 - x to show still reads "over 99.9 %"."""
    return "over 99.9 %" if loss.relative_error > 0 and loss.energy_kept == 1 else percent(loss.energy_kept)
