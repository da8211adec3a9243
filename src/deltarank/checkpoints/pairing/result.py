"""The result of pairing two checkpoints."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field

from deltarank.checkpoints.checkpoint import Checkpoint
from deltarank.checkpoints.pieces import Pair, SummedTensor
from deltarank.results import Skipped, Unpaired


@dataclass(frozen=True)
class Pairing:
    """Which tensors of two checkpoints are measured, only summed, or not read; and notes for the user.

    base, finetune  the checkpoints as they were compared: the finetune in the layout of the base
    """

    pairs: tuple[Pair, ...]
    summed: tuple[SummedTensor, ...]
    skipped: tuple[Skipped, ...]
    notes: tuple[str, ...]
    base: Checkpoint = field(repr=False, compare=False)
    finetune: Checkpoint = field(repr=False, compare=False)

    def unpaired(self, failed: Container[str] = ()) -> Unpaired:
        """The matrices of either side without a counterpart, and the pairs of the names in `failed`."""
        shared: tuple[Pair | SummedTensor, ...] = (*self.pairs, *self.summed)
        measured = [each for each in shared if each.name not in failed]
        missed = [each for each in shared if each.name in failed]
        return Unpaired.of(measured, self.skipped, missed, self.finetune.added)
