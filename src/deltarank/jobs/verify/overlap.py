"""How close an adapter's L is to the change D = W - W0, by sums over chunks: neither is held whole in memory."""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass

import torch
from torch import Tensor

from deltarank.adapters import LoraUpdate
from deltarank.checkpoints import Pair, SummedTensor, read_chunks
from deltarank.spectra import Sums, Workspace, energy_of, subtract


@dataclass(frozen=True)
class Overlap:
    """Sums over the entries of D, L, and R, which is W0 + L rounded as the finetune is; those of several parts add up.

    lost             ||D - L||^2
    inner            <D, L>
    added            ||L||^2
    rounded_lost     ||W - R||^2
    rounded_inner    <R - W0, L>
    """

    lost: float = 0.0
    inner: float = 0.0
    added: float = 0.0
    rounded_lost: float = 0.0
    rounded_inner: float = 0.0

    def __add__(self, other: Overlap) -> Overlap:
        return Overlap(*(one + two for one, two in zip(astuple(self), astuple(other), strict=True)))

    @property
    def is_finite(self) -> bool:
        return all(map(math.isfinite, (self.lost, self.inner, self.added)))


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
            seen += Overlap(lost=part.energy, rounded_lost=part.energy)
        else:
            seen += _compared(out, effect.rows(first, before), before, finetune.dtype, workspace)
    return sums.with_format_error(target.finetune.rounding_error), seen


def _compared(delta: Tensor, added: Tensor, base: Tensor, stored: torch.dtype, workspace: Workspace) -> Overlap:
    scratch = workspace.empty_like("products", delta)
    lost = energy_of(torch.sub(delta, added, out=scratch))
    inner = _dot(delta, added, scratch)
    rounded = (base + added).to(stored).to(delta.dtype).sub_(base)  # R - W0
    rounded_lost = energy_of(torch.sub(delta, rounded, out=scratch))
    return Overlap(lost, inner, energy_of(added), rounded_lost, _dot(rounded, added, scratch))


def _dot(one: Tensor, other: Tensor, scratch: Tensor) -> float:
    product = torch.mul(one, other, out=scratch)
    return float(product.sum(dtype=torch.float32 if one.device.type == "mps" else torch.float64))
