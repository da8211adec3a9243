"""Biases that an adapter carries beside its factors: their change, rounded to the adapter's dtype."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from deltarank.adapters import FillBuffer
from deltarank.checkpoints import Pair, SummedTensor, read_chunks
from deltarank.jobs.extract.result import SummedEnergy


def bias_energy(bias: SummedTensor | Pair, dtype: torch.dtype) -> SummedEnergy:
    """The energy of the change d of a bias, ||d||^2, and what storing it in `dtype` loses, ||d - round(d)||^2.

    Raises:
        CheckpointError: (slug "unreadable") a file cannot be read.
    """
    energy = rounded = 0.0
    for change in _changes(bias):
        energy += float(change.square().sum())
        rounded += float((change - change.to(dtype).double()).square().sum())
    return SummedEnergy(bias.name, energy, rounded)


def fill_with_bias(bias: SummedTensor | Pair, dtype: torch.dtype) -> FillBuffer:
    """The change of a bias as it is written."""

    def fill(first: int, block: memoryview) -> None:
        change = torch.cat([part.flatten() for part in _changes(bias)]).to(dtype)
        block[:] = change.view(torch.uint8).numpy().data[first : first + len(block)]

    return fill


def _changes(bias: SummedTensor | Pair) -> Iterator[Tensor]:
    """In float64, some rows at a time."""
    for _, base, finetune in read_chunks(bias.base, bias.finetune):
        yield finetune.double() - base.double()
