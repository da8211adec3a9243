"""The matrices of one checkpoint that have no counterpart in the other: what no figure of a comparison covers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from deltarank.results.formatting import count, percent, percent_kept
from deltarank.results.matrix import Outcome, Skipped

NOTABLE_SHARE = 0.01
"""From this share of the parameters on, the first sentence of a verdict states it."""

ALL_ELSEWHERE = "all of its change is in tensors that were not"
"""After "... that were measured": of a finetune whose measured matrices are the base's."""

_BOTH = (Outcome.SHAPE_DIFFERS, Outcome.NOT_FLOATING)
_IN_FINETUNE = (Outcome.ONLY_IN_FINETUNE, *_BOTH)
_IN_BASE = (Outcome.ONLY_IN_BASE, *_BOTH)
_UNPAIRED = {*_IN_FINETUNE, *_IN_BASE}
_NOT_SHARED = {*_UNPAIRED, Outcome.DUPLICATE, Outcome.EXTRA_ROWS}


class Shaped(Protocol):
    """A tensor of both checkpoints."""

    @property
    def shape(self) -> tuple[int, ...]: ...


@dataclass(frozen=True)
class Unpaired:
    """The side with the larger share: what part of its parameters is in matrices that were not paired.

    matrices   how many there are on both sides
    of_base    whether the share is of the base's parameters
    """

    share: float = 0.0
    matrices: int = 0
    of_base: bool = False

    @classmethod
    def of(cls, compared: Iterable[Shaped], skipped: Sequence[Skipped]) -> Self:
        """Of what was compared, and of what was not. Vectors and masks such as (1, 1, n, n) are no matrices."""
        both = [*compared, *(each for each in skipped if each.outcome not in _NOT_SHARED)]
        paired = sum(math.prod(each.shape) for each in both)
        matrices = [each for each in skipped if each.outcome in _UNPAIRED]
        matrices = [each for each in matrices if len(each.shape) > 1 and min(each.shape) > 1]
        finetune, base = (_share(paired, matrices, outcomes) for outcomes in (_IN_FINETUNE, _IN_BASE))
        return cls(max(finetune, base), len(matrices), of_base=base > finetune)

    @property
    def is_notable(self) -> bool:
        return self.share > NOTABLE_SHARE

    @property
    def subject(self) -> str:
        """ "62 % of its parameters", of the finetune."""
        owner = "the base's" if self.of_base else "its"
        return f"{percent(self.share)} of {owner} parameters"

    def kept(self, energy_lost: float) -> str:
        """The share of the change that is kept; never "100 %" while matrices are unpaired."""
        return "all" if self.matrices and energy_lost == 0 else percent_kept(energy_lost)

    def remark(self, energy_lost: float = 1.0) -> str:
        """For the end of a sentence about a finetune: ", not counting ..."; "" where the share is small.

        Args:
            energy_lost: of what the sentence says is kept; if that is all, small shares count, too.
        """
        if not self.is_notable and not (energy_lost == 0 and self.matrices):
            return ""
        return f", not counting {self.subject}, which could not be paired with the {self.other}"

    def no_change_in(self, matrices: int | None = None) -> str:
        """What a finetune "has" if the matrices that were paired are equal."""
        paired = "matrices" if matrices is None else count(matrices, "matrix", "matrices")
        return (
            f"no change in the {paired} that could be compared; the change in {self.subject}, which could not be "
            f"paired with the {self.other}, is unknown"
        )

    @property
    def other(self) -> str:
        return "finetune" if self.of_base else "base"


NONE_UNPAIRED = Unpaired()


def _share(paired: int, matrices: Iterable[Skipped], outcomes: tuple[Outcome, ...]) -> float:
    entries = sum(math.prod(each.shape) for each in matrices if each.outcome in outcomes)
    return entries / (paired + entries) if entries else 0.0
