"""How close an adapter's L is to the change D = W - W0, by sums over chunks: neither is held whole in memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from deltarank.adapters import LoraUpdate
from deltarank.checkpoints import Pair, SummedTensor, read_chunks
from deltarank.spectra import Sums, Workspace, energy_of, subtract


@dataclass(frozen=True)
class Overlap:
    """Sums over the entries of D and L; those of several parts add up.

    lost             ||D - L||^2
    inner            <D, L>
    added            ||L||^2
    """

    lost: float = 0.0
    inner: float = 0.0
    added: float = 0.0

    def __add__(self, other: Overlap) -> Overlap:
        return Overlap(self.lost + other.lost, self.inner + other.inner, self.added + other.added)

    @property
    def is_finite(self) -> bool:
        return all(math.isfinite(each) for each in (self.lost, self.inner, self.added))


def overlap(
    target: SummedTensor | Pair, effect: LoraUpdate | None, workspace: Workspace, *, keep: Tensor | None
) -> tuple[Sums, Overlap]:
    """One pass over a tensor of both checkpoints.

    Args:
        effect: what the adapter adds to it; None if it leaves it alone.
        keep: (rows, columns): takes D, for who wants it whole.

    Raises:
        CheckpointError: (slug "unreadable") one of the files cannot be read.
    """
    sums, seen = Sums(), Overlap()
    dtype = torch.float32 if keep is None else keep.dtype
    for first, base, finetune in read_chunks(target.base, target.finetune):
        out = workspace.empty("delta rows", base.shape, dtype) if keep is None else keep[first : first + len(base)]
        before = base.to(workspace.device, dtype)
        part = subtract(base, finetune, out=out, workspace=workspace)
        sums += part
        if effect is None:
            seen += Overlap(lost=part.energy)
        else:
            seen += _compared(out, effect.rows(first, before), workspace)
    return sums.with_format_error(target.finetune.rounding_error), seen


def _compared(delta: Tensor, added: Tensor, workspace: Workspace) -> Overlap:
    scratch = torch.mul(delta, added, out=workspace.empty_like("products", delta))
    inner = float(scratch.sum(dtype=torch.float32 if delta.device.type == "mps" else torch.float64))
    left = torch.sub(delta, added, out=scratch)
    return Overlap(energy_of(left), inner, energy_of(added))
