"""What a LoRA leaves out of a finetune, in a sentence, with the tensors by name if they are what limits every rank."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from deltarank.jobs.compare.rank_needed import kept_by_rank
from deltarank.results import (
    TIED_EMBEDDING,
    IncludedByName,
    LeftOutShare,
    Loss,
    Outcome,
    Outputs,
    RankLimit,
    Skipped,
    percent,
)

MOST_OF_IT = 0.5
"""A tensor with a larger share of what is left out is named."""

SMALL = 0.005
"""A smaller share of the change is stated without names."""

_WORDS = {
    Outcome.NOT_A_MATRIX: "norms, biases and other tensors outside linear layers",
    Outcome.EMBEDDING: "embeddings and output head",
    Outcome.TIED: "a tied output head",
}


@dataclass(frozen=True)
class LeftOutOfLora:
    """The tensors that both checkpoints have, and that no matrix of a LoRA covers.

    changed     those that differ
    unread      those whose change is not known
    included    matrices that were measured because they were named, and that a portable adapter leaves out
    """

    changed: tuple[Skipped, ...]
    unread: tuple[Skipped, ...]
    included: IncludedByName = field(default_factory=IncludedByName)

    @classmethod
    def of(cls, skipped: Sequence[Skipped], included: IncludedByName) -> LeftOutOfLora:
        changed = tuple(sorted((s for s in skipped if s.energy), key=lambda s: -(s.share or 0.0)))
        unread = tuple(s for s in skipped if s.energy is None and s.outcome is not Outcome.DUPLICATE)
        return cls(changed, unread, included)

    @property
    def share(self) -> float:
        """Of the whole change."""
        return math.fsum(s.share for s in self.changed if s.share is not None)

    def sentence(self, loss: Loss, outputs: Outputs | None) -> str:
        """At the rank of the headline, whose loss in the weights this is."""
        if self.included.names:
            return self._with_included()
        if not self.changed and self.unread:
            return "A LoRA can carry all of the change that was found: no other tensor that was read changed."
        if not self.changed:
            return "A LoRA can carry all of the change: no other tensor changed."
        if self.share < SMALL:
            return f"A LoRA can carry nearly all of the change: {self.elsewhere}."
        limit = self._limit()
        if limit and self._is_more_than_the_rank(limit, loss, outputs):
            return limit.sentence("a LoRA on the measured matrices", self._at_most(outputs))
        at_most = f"; {words}" if (words := self._at_most(outputs)) else ""
        return f"A LoRA on the measured matrices leaves out the rest: {self.elsewhere}{self._most_of_it()}{at_most}."

    def _with_included(self) -> str:
        share = percent((1 - self.share) * self.included.share)
        rest = f"; {self.elsewhere}" if self.changed else ""
        are = "was" if len(self.included.names) == 1 else "were"
        return (
            f"A portable adapter leaves out {self.included.listed}, which {are} included by name here "
            f"({share} of the change that was read){rest}."
        )

    @property
    def elsewhere(self) -> str:
        """ "27 % of the whole change is in 11 tensors that were not measured (norms, ...)"."""
        are = "tensor that was" if len(self.changed) == 1 else "tensors that were"
        return (
            f"{percent(self.share)} of the whole change is in {len(self.changed):,} {are} not measured "
            f"({', '.join(_kinds_in_words(self.changed))})"
        )

    def _limit(self) -> RankLimit | None:
        tensors = (LeftOutShare(s.name, s.share or 0.0, s.reason == TIED_EMBEDDING) for s in self.changed)
        return RankLimit.of(list(tensors))

    def _is_more_than_the_rank(self, limit: RankLimit, loss: Loss, outputs: Outputs | None) -> bool:
        """Whether more is lost with these tensors than to the rank: of the behaviour if known, else of the change."""
        kept = kept_by_rank(outputs) if outputs else {}
        if (unlimited := kept.get(None)) and (at_rank := kept.get(loss.rank)):
            return 1 - unlimited.value > max(SMALL, (1 - at_rank.value) / 2)
        return limit.exceeds((1 - self.share) * loss.energy_lost)

    def _at_most(self, outputs: Outputs | None) -> str:
        kept = kept_by_rank(outputs).get(None) if outputs else None
        if kept is None or 1 - kept.value < SMALL:
            return ""
        return f"plain extraction of unlimited rank keeps {percent(kept.value)} of the behaviour"

    def _most_of_it(self) -> str:
        largest = self.changed[0]
        if len(self.changed) == 1 or (largest.share or 0.0) < MOST_OF_IT * self.share:
            return ""
        return f", most of it in {largest.name.removesuffix('.weight')}"


def _kinds_in_words(skipped: Sequence[Skipped]) -> list[str]:
    return list(dict.fromkeys(_WORDS.get(s.outcome, s.outcome.value.replace("_", " ")) for s in skipped))
