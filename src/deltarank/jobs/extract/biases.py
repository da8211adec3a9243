"""Biases that an adapter carries beside its factors: their change, rounded to the adapter's numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from deltarank.adapters import FillBuffer
from deltarank.checkpoints import Pair, SummedTensor, read_chunks
from deltarank.jobs.extract.layout import UnfactoredTensor


@dataclass(frozen=True)
class BiasLoss:
    """||d||^2 of the change d of a bias, and ||d - its rounding||^2."""

    energy: float
    lost: float


def bias_loss(pair: SummedTensor | Pair, dtype: torch.dtype) -> BiasLoss:
    """What storing the change of a bias in `dtype` loses.

    Raises:
        CheckpointError: (slug "unreadable") a file cannot be read.
    """
    energy = lost = 0.0
    for change in _changes(pair):
        energy += float(change.square().sum())
        lost += float((change - change.to(dtype).double()).square().sum())
    return BiasLoss(energy, lost)


def bias_bytes(other: UnfactoredTensor, dtype: torch.dtype) -> FillBuffer:
    """The change of a bias as it is written."""

    def fill(first: int, block: memoryview) -> None:
        assert other.pair is not None
        whole = torch.cat([change.flatten() for change in _changes(other.pair)]).to(dtype)
        block[:] = whole.view(torch.uint8).numpy().data[first : first + len(block)]

    return fill


def _changes(pair: SummedTensor | Pair) -> Iterator[Tensor]:
    """In float64, some rows at a time."""
    for _, base, finetune in read_chunks(pair.base, pair.finetune):
        yield finetune.double() - base.double()
