"""What no figure of a comparison covers: matrices without a counterpart, and tensors that could not be measured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from deltarank.results.added_adapter import AddedAdapter
from deltarank.results.formatting import count, listing, percent, percent_kept
from deltarank.results.matrix import Outcome, Skipped

NOTABLE_SHARE = 0.01
"""From this share of the parameters on, the first sentence of a verdict states it."""

ALL_ELSEWHERE = "all of its change is in tensors that were not"
"""After "... that were measured": of a finetune whose measured matrices are the base's."""

_BOTH = (Outcome.SHAPE_DIFFERS, Outcome.OTHER_TOKENS, Outcome.NOT_FLOATING)
_IN_FINETUNE = (Outcome.ONLY_IN_FINETUNE, *_BOTH)
_IN_BASE = (Outcome.ONLY_IN_BASE, *_BOTH)
_UNPAIRED = {*_IN_FINETUNE, *_IN_BASE}
_NOT_SHARED = {*_UNPAIRED, Outcome.DUPLICATE, Outcome.EXTRA_ROWS}
_FAILED = {Outcome.NOT_FINITE, Outcome.UNREADABLE, Outcome.FAILED}


class Shaped(Protocol):
    """A tensor of both checkpoints."""

    @property
    def shape(self) -> tuple[int, ...]: ...


@dataclass(frozen=True)
class Unpaired:
    """What part of the parameters is in matrices that were not paired, or in tensors that could not be measured.

    share         in unpaired matrices, of the side where it is larger
    matrices      how many unpaired ones there are on both sides
    of_base       whether the share is of the base's parameters
    failed_share  of the finetune's parameters, in tensors that contain NaN or Inf, or could not be read or computed
    failed        how many such tensors there are
    vectors       how many weights and biases of one dimension have no counterpart
    unloaded_share  of the parameters of an adapter that is the finetune: those that PEFT does not load
    """

    share: float = 0.0
    matrices: int = 0
    of_base: bool = False
    failed_share: float = 0.0
    failed: int = 0
    vectors: int = 0
    unloaded_share: float = 0.0

    @classmethod
    def of(
        cls,
        compared: Iterable[Shaped],
        skipped: Sequence[Skipped],
        failed: Iterable[Shaped] = (),
        adapter: AddedAdapter | None = None,
    ) -> Self:
        """Of what was compared, and of what was not. Vectors and masks such as (1, 1, n, n) are no matrices.

        Args:
            failed: what both checkpoints have and could not be measured, beside what `skipped` says of it.
            adapter: the one that is the finetune.
        """
        failed = [*failed, *(each for each in skipped if each.outcome in _FAILED)]
        both = [*compared, *failed, *(each for each in skipped if each.outcome not in {*_NOT_SHARED, *_FAILED})]
        paired = _entries(both)
        matrices = [each for each in skipped if each.outcome in _UNPAIRED]
        vectors = sum(_is_vector(each) for each in matrices)
        matrices = [each for each in matrices if len(each.shape) > 1 and min(each.shape) > 1]
        finetune, base = (_share(paired, matrices, outcomes) for outcomes in (_IN_FINETUNE, _IN_BASE))
        whole = paired + _entries(each for each in matrices if each.outcome in _IN_FINETUNE)
        failed_share = _entries(failed) / whole if whole else 0.0
        unloaded = adapter.unloaded_share if adapter else 0.0
        return cls(max(finetune, base), len(matrices), base > finetune, failed_share, len(failed), vectors, unloaded)

    @property
    def is_complete(self) -> bool:
        """Whether every matrix was paired, and every pair measured."""
        return not (self.matrices or self.failed)

    @property
    def can_be_equal(self) -> bool:
        """Whether two checkpoints whose measured matrices are equal may be the same: nothing is on one side only."""
        return self.is_complete and not self.vectors

    @property
    def is_notable(self) -> bool:
        return max(self.share, self.failed_share, self.unloaded_share) > NOTABLE_SHARE

    def _parts(self, least: float) -> list[str]:
        """ "62 % of its parameters, which could not be paired with the base", of the shares above the least."""
        owner, other = ("the base's", "finetune") if self.of_base else ("its", "base")
        parts = []
        if self.matrices and self.share > least:
            parts.append(f"{percent(self.share)} of {owner} parameters, which could not be paired with the {other}")
        if self.failed and self.failed_share > least:
            parts.append(f"{percent(self.failed_share)} of its parameters, which could not be measured")
        return parts

    def kept(self, energy_lost: float) -> str:
        """The share of the change that is kept; never "100 %" while a matrix is unpaired or was not measured."""
        return "all" if not self.is_complete and energy_lost == 0 else percent_kept(energy_lost)

    def remark(self, energy_lost: float = 1.0) -> str:
        """For the end of a sentence about a finetune: ", not counting ..."; "" where the share is small.

        Args:
            energy_lost: of what the sentence says is kept; if that is all, small shares count, too.
        """
        parts = self._parts(0.0 if energy_lost == 0 else NOTABLE_SHARE)
        if self.unloaded_share > NOTABLE_SHARE:
            parts.append(f"{percent(self.unloaded_share)} of the adapter's parameters, which PEFT does not load")
        return f", not counting {listing(parts)}" if parts else ""

    def no_change_in(self, matrices: int | None = None) -> str:
        """What a finetune "has" if the matrices that were compared are equal."""
        paired = "matrices" if matrices is None else count(matrices, "matrix", "matrices")
        vectors = [f"{count(self.vectors, 'vector')} without a counterpart"] if self.vectors else []
        unknown = listing([f"in {part}" for part in (*self._parts(0.0), *vectors)])
        return f"no change in the {paired} that could be compared; the change {unknown}, is unknown"


def _is_vector(tensor: Skipped) -> bool:
    """A parameter such as a norm or a bias; not a buffer, such as `inv_freq` or a mask."""
    is_long = len(tensor.shape) == 1 or (len(tensor.shape) == 2 and min(tensor.shape) == 1)
    return is_long and tensor.name.endswith(("weight", "bias"))


NONE_UNPAIRED = Unpaired()


def _entries(tensors: Iterable[Shaped]) -> int:
    return sum(math.prod(each.shape) for each in tensors)


def _share(paired: int, matrices: Iterable[Skipped], outcomes: tuple[Outcome, ...]) -> float:
    entries = _entries(each for each in matrices if each.outcome in outcomes)
    return entries / (paired + entries) if entries else 0.0
