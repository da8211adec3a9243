"""Whether a merged checkpoint holds an adapter: a row for each tensor of both checkpoints."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from deltarank.results.codec import Count, Energy, StoredResult
from deltarank.results.formatting import escape
from deltarank.results.matrix import Outcome
from deltarank.results.notebook_parts import sentences_html
from deltarank.results.reference import Reference
from deltarank.results.verification import IgnoredTensor, TensorChange

FORMAT_VERSION = 1
# 1: the first format (2026-11).


class MergeFit(StrEnum):
    """What one tensor of the merged checkpoint is, beside the base's and the adapter's.

    exact, rounding, strength    the adapter was merged into it: bit for bit; up to rounding; multiplied by `strength`
    mixed                        the adapter was merged into it, and something else was added
    absent                       the adapter was not merged into it; a tensor with the base's numbers holds none
    vanished                     base and merge cannot be told apart: the adapter's change is below the rounding. It has
                                 the base's numbers, and one of the usual ways to merge leaves them as they are
    unchanged, changed           the adapter does not change this tensor; the checkpoint has the base's, or another
    """

    EXACT = "exact"
    ROUNDING = "rounding"
    STRENGTH = "strength"
    MIXED = "mixed"
    ABSENT = "absent"
    VANISHED = "vanished"
    UNCHANGED = "unchanged"
    CHANGED = "changed"


HELD = (MergeFit.EXACT, MergeFit.ROUNDING, MergeFit.STRENGTH, MergeFit.MIXED)


class MergeKind(StrEnum):
    """Whether a checkpoint holds an adapter. Only the first two say that it is base and adapter and nothing else."""

    EXACT = "exact"
    ROUNDING = "rounding"
    STRENGTH = "strength"
    WITH_OTHER_CHANGES = "with_other_changes"
    PART = "part"
    ABSENT = "absent"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True)
class MergedTensor:
    """One tensor that both checkpoints have. W0 is the base's, W the merged checkpoint's.

    replay           the way to merge that gives W bit for bit, or comes nearest to it
    strength         what the adapter's change is multiplied by in W; None where it is not in W
    mismatches       entries in which W differs from the replay; of a tensor that the adapter does not change, from W0
    moved            entries that the merge changes
    deviation        the largest difference from the merge, in units in the last place; None where a side is quantised
    energy           ||W - W0||^2, after W0 was rounded to the dtype of W
    residual         the part of it that the merge does not explain
    """

    name: str
    layer: Count | None
    module: str
    shape: tuple[Count, ...]
    outcome: Outcome
    change: TensorChange
    fit: MergeFit | None = None
    replay: str | None = None
    strength: float | None = None
    mismatches: Count | None = None
    moved: Count | None = None
    deviation: float | None = None
    energy: Energy = 0.0
    residual: Energy = 0.0
    reason: str | None = None

    @property
    def is_compared(self) -> bool:
        return self.outcome is Outcome.MEASURED

    @property
    def is_touched(self) -> bool:
        return self.change is not TensorChange.NONE

    @property
    def is_other_change(self) -> bool:
        """Whether something other than the adapter changed it."""
        return self.fit in (MergeFit.CHANGED, MergeFit.MIXED)


@dataclass(frozen=True)
class MergeCheck(StoredResult):
    """Whether a merged checkpoint holds an adapter on a base. `sentences[0]` is the headline.

    strength         the strength in most tensors, where the adapter is held
    other_share      the share of the whole change ||W - W0||^2 that the adapter does not explain
    unused           what of the adapter's file changes nothing
    """

    description = "what `deltarank verify --merged --json` prints"
    cure = "Run `deltarank verify --merged` again."
    readable_format = FORMAT_VERSION

    base: Reference
    merged: Reference
    adapter: Reference
    kind: MergeKind
    sentences: tuple[str, ...]
    strength: float | None
    other_share: float | None
    tensors: tuple[MergedTensor, ...]
    unused: tuple[IgnoredTensor, ...]
    notes: tuple[str, ...]
    tool_version: str
    created: str
    format_version: Count = FORMAT_VERSION

    def __repr__(self) -> str:
        return f"<MergeCheck {escape(self.adapter.short_name)}: {self.kind.value}; {escape(self.sentences[0])}>"

    def _repr_html_(self) -> str:
        return sentences_html(self.sentences)


def other_share(rows: Iterable[MergedTensor]) -> float | None:
    """The share of the whole change that is not the adapter's; None if nothing changed."""
    rows = list(rows)
    energy = math.fsum(row.energy for row in rows)
    is_held = [row for row in rows if row.fit in HELD]
    other = math.fsum(row.residual if row in is_held else row.energy for row in rows)
    return min(other / energy, 1.0) if energy > 0 else None
