"""The rank that a finetune needs, in a sentence: by its outputs where they were measured, and by its weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from deltarank.results import (
    ABOVE_EDGE,
    SERVABLE_RANKS,
    CandidateKind,
    CandidateResult,
    Interval,
    MatrixResult,
    NoiseShares,
    Outcome,
    Outputs,
    Total,
    noise_shares,
    percent,
    percent_kept,
    slot_for,
)

LEVELS = (0.90, 0.99)
"""The shares of the change that the rank needed is stated for."""

ENOUGH = 0.01
"""A rank is called enough if it keeps at most this share of the behaviour less than unlimited rank."""

NEARLY_ALL_KEPT = 0.95

MOSTLY_SIGNAL = 0.99
"""If more of the change is above the noise edge, what is below is not mentioned."""


@dataclass(frozen=True)
class RankNeeded:
    """What each measured rank keeps of the change in the matrices.

    noise  at each measured rank
    """

    matrices: Sequence[MatrixResult]
    whole: Total
    noise: dict[int, NoiseShares]

    @classmethod
    def of(cls, matrices: Sequence[MatrixResult], whole: Total) -> RankNeeded:
        return cls(matrices, whole, {loss.rank: noise_shares(matrices, loss.rank) for loss in whole.losses})

    @property
    def is_noisy(self) -> bool:
        """Whether a notable part of the change is below the noise edge."""
        measured = [m for m in self.matrices if m.outcome is Outcome.MEASURED and m.energy > 0]
        if any(m.signal_share is None for m in measured):
            return False
        signal = math.fsum(m.energy * (m.signal_share or 0.0) for m in measured)
        return 0 < signal < MOSTLY_SIGNAL * self.whole.energy

    def lost(self, rank: int) -> float:
        """What a rank loses of the energy above the noise edge, or of all of it if nearly all is above."""
        kept = self.noise[rank].signal_kept
        return self.whole.loss(rank).energy_lost if kept is None or not self.is_noisy else 1 - kept

    def lowest(self, level: float) -> int | None:
        """The lowest measured rank that keeps this share."""
        return next((rank for rank in self.noise if self.lost(rank) <= 1 - level + 1e-12), None)

    def of_lora(self, rank: int, *, is_only: bool) -> str:
        """The sentence for a LoRA of this rank, merged or not.

        Args:
            is_only: whether this says which rank is enough; else another sentence says it, by the outputs.
        """
        enough, highest = self.lowest(LEVELS[-1]), max(self.noise)
        of_what = ABOVE_EDGE if self.is_noisy else "the change in the matrices"
        if enough is None:
            return (
                f"It needs rank {rank}, which was not measured: rank {highest}, the highest measured, keeps "
                f"{percent_kept(self.lost(highest))} of {of_what}."
            )
        kept = "all" if self.lost(enough) == 0 else percent_kept(self.lost(enough))
        is_enough = "is enough: it keeps" if is_only else "keeps"
        return f"Rank {enough}{slot_words(enough)} {is_enough} {kept} of {of_what}."

    def of_full_finetune(self) -> str:
        low, high = (self._in_words(level) for level in LEVELS)
        of_what = ABOVE_EDGE if self.is_noisy else "the change in the matrices"
        if low == high:
            return f"To keep 99 % of {of_what}, a LoRA needs {high}."
        return f"To keep 90 % of {of_what}, a LoRA needs {low}; to keep 99 %, {high}."

    def _in_words(self, level: float) -> str:
        enough = self.lowest(level)
        if enough is not None:
            return f"rank {enough}{slot_words(enough)}"
        highest = max(self.noise)
        beyond = None if self.is_noisy else estimated_rank(level, self.matrices)
        about = f" (estimated: {beyond:,})" if beyond else ""
        if highest < SERVABLE_RANKS[-1] and (beyond is None or beyond <= SERVABLE_RANKS[-1]):
            return f"a rank above {highest}, the highest measured{about}"
        return f"a higher rank than vLLM can load{about}"


def slot_words(rank: int) -> str:
    """ " (in vLLM a slot of rank 16)" after a rank that is not the size of a slot."""
    slot = slot_for(rank)
    return "" if slot in (rank, None) else f" (in vLLM a slot of rank {slot})"


def by_behaviour(outputs: Outputs) -> Iterator[str]:
    """The lowest measured rank whose behaviour a higher one hardly improves; nothing if it is not known.

    An adapter that was not extracted plainly may keep more than unlimited rank: then it is named.
    """
    kept = kept_by_rank(outputs)
    unlimited = kept.pop(None, None)
    if unlimited is None or not kept:
        return
    yield " ".join([_rank_in_words(kept, unlimited.value), *_better_adapter(outputs, unlimited.value)])


def _rank_in_words(kept: Mapping[int | None, Interval], limit: float) -> str:
    """
    Args:
        kept: by the measured ranks; `limit`: at unlimited rank.
    """
    enough = next((rank for rank in sorted(kept, key=_as_number) if limit - kept[rank].value <= ENOUGH), None)
    if enough is None:
        highest = max(kept, key=_as_number)
        return (
            f"No measured rank is enough: plain extraction of rank {highest} keeps {percent(kept[highest].value)} of "
            f"the behaviour, and of unlimited rank it would keep {percent(limit)}."
        )
    if limit >= NEARLY_ALL_KEPT:
        return f"Rank {enough} is enough: it keeps {percent(kept[enough].value)} of the behaviour."
    return (
        f"Ranks above {enough} gain little: plain extraction of rank {enough} keeps {percent(kept[enough].value)} of "
        f"the behaviour, of unlimited rank {percent(limit)}."
    )


def _better_adapter(outputs: Outputs, limit: float) -> Iterator[str]:
    """The one that keeps most, if it keeps more than unlimited rank, `limit`, beyond its interval."""
    better = [
        (kept.value, adapter)
        for adapter, kept in _kept(outputs, CandidateKind.ADAPTER)
        if kept.value - limit > ENOUGH and (kept.low is None or kept.low > limit)
    ]
    if better:
        share, adapter = max(better, key=lambda each: each[0])
        rank = "" if adapter.rank is None else f", of rank {adapter.rank},"
        yield (
            f"The adapter {adapter.name.removeprefix('adapter ')}{rank} keeps {percent(share)}: more than plain "
            "extraction at any rank."
        )


def kept_by_rank(outputs: Outputs) -> dict[int | None, Interval]:
    """The share of the behaviour kept on the main text, by rank; None: unlimited rank. Negative shares are left out."""
    return {candidate.rank: kept for candidate, kept in _kept(outputs, CandidateKind.RANK) if kept.value >= 0}


def _kept(outputs: Outputs, kind: CandidateKind) -> Iterator[tuple[CandidateResult, Interval]]:
    """The candidates of a kind with the share of the behaviour that they keep on the main text."""
    text = outputs.main_text
    for candidate in (each for each in outputs.candidates if each.kind is kind):
        for on in candidate.logits:
            if text and on.text == text.name and on.kept:
                yield candidate, on.kept


def _as_number(rank: int | None) -> float:
    return math.inf if rank is None else rank


def estimated_rank(level: float, matrices: Sequence[MatrixResult]) -> int | None:
    """The rank that keeps this share of the energy, to two digits; None if a curve is not known to its end."""
    rows = [m for m in matrices if m.outcome is Outcome.MEASURED]
    if any(not m.curve or m.curve[-1][0] < m.max_rank for m in rows):
        return None
    total = math.fsum(m.energy for m in rows)
    rank = _bisect(
        lambda rank: math.fsum(m.energy * _lost_at(m, rank) for m in rows) <= (1 - level) * total,
        max(m.max_rank for m in rows),
    )
    step: int = 10 ** max(len(str(rank)) - 2, 0)
    return math.ceil(rank / step) * step


def _bisect(is_enough: Callable[[int], bool], most: int) -> int:
    low, high = 1, most
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle + 1, high)
    return low


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
