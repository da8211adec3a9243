"""Few tensors that hold most of what a LoRA leaves out: they limit every rank, in a sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from deltarank.results.formatting import listing, percent

_MOST_OF_IT = 0.5
_NEARLY_ALL_OF_IT = 0.9
_MOST_NAMED = 3


@dataclass(frozen=True)
class LeftOutShare:
    """A tensor that a LoRA leaves out.

    share     of the whole change
    is_head   whether it is the embedding of a model whose output head is the same matrix
    """

    name: str
    share: float
    is_head: bool = False

    @property
    def in_words(self) -> str:
        name = self.name.removesuffix(".weight")
        return f"{name} (which is also the output head)" if self.is_head else name


@dataclass(frozen=True)
class RankLimit:
    """The tensors that hold nearly all of what is left out, and at least half of it. `whole` is all that is left out.

    They limit every rank if more is left out than the rank loses.
    """

    tensors: tuple[LeftOutShare, ...]
    whole: float

    @classmethod
    def of(cls, left_out: Sequence[LeftOutShare]) -> Self | None:
        """None if no few tensors hold half of it."""
        largest = sorted(left_out, key=lambda tensor: -tensor.share)
        few, held, whole = [], 0.0, math.fsum(tensor.share for tensor in left_out)
        for tensor in largest[:_MOST_NAMED]:
            few.append(tensor)
            held += tensor.share
            if held >= _NEARLY_ALL_OF_IT * whole:
                break
        return cls(tuple(few), whole) if few and held >= _MOST_OF_IT * whole else None

    def exceeds(self, lost: float) -> bool:
        """
        Args:
            lost: the share of the whole change that the rank loses.
        """
        return self.whole > lost

    def sentence(self, who: str, consequence: str = "") -> str:
        """
        Args:
            who: what leaves the tensors out, as in "this adapter".
            consequence: what follows from that, as in "plain extraction of unlimited rank keeps 96 % of the behaviour".
        """
        are, they_hold, them = ("is", "It holds", "it") if len(self.tensors) == 1 else ("are", "They hold", "them")
        held = percent(math.fsum(tensor.share for tensor in self.tensors))
        so_that = f", so that {consequence}" if consequence else ""
        return (
            f"What limits every rank {are} {listing([tensor.in_words for tensor in self.tensors])}. {they_hold} {held} "
            f"of the whole change, and {who} leaves {them} out{so_that}. Freezing {them} in training avoids that."
        )
