"""The usual ways to merge a LoRA into a matrix, repeated number by number.

PEFT's were read in peft 0.21 (tuners/lora/layer.py, `merge` and `get_delta_weight`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deltarank.adapters import Change, LoraAdapter, LoraUpdate, PartKind

_HALVES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class Replay:
    """One way to merge. All products are summed in float32, as on a CPU.

    dtype        of the model while it is merged; the result is cast to the stored dtype afterwards
    factors      A and B are rounded to this dtype first, as in a model that was cast with its adapter
    product      B A is rounded to this dtype before it is scaled, as by a matmul in that dtype
    update       scale B A is rounded to this dtype before it is added, as by safe_merge
    is_fused     W0 + scale B A is computed by one call of addmm
    """

    name: str
    dtype: torch.dtype
    factors: torch.dtype | None = None
    product: torch.dtype | None = None
    update: torch.dtype | None = None
    is_fused: bool = False


def replays(base: torch.dtype, stored: torch.dtype) -> list[Replay]:
    """The ways to merge into a base of one dtype that end in a checkpoint of another, the commonest first."""
    dtypes = dict.fromkeys((stored, torch.float32, base, *_HALVES))
    return [replay for dtype in dtypes for replay in _replays_in(dtype)]


def _replays_in(dtype: torch.dtype) -> Iterator[Replay]:
    name = str(dtype).removeprefix("torch.")
    yield Replay(f"PEFT's merge in {name}", dtype)
    if dtype in _HALVES:
        yield Replay(f"PEFT's safe_merge in {name}", dtype, update=dtype)
        yield Replay(f"PEFT's merge of an adapter cast to {name}", dtype, factors=dtype, update=dtype)
        yield Replay(f"a merge in {name} with B A rounded first", dtype, factors=dtype, product=dtype, update=dtype)
    else:
        yield Replay(f"one addmm in {name}", dtype, is_fused=True)


class Merger:
    """Merges the changes of one tensor into it, some rows at a time.

    Raises:
        CheckpointError: (slug "unreadable") a factor cannot be read.
    """

    def __init__(self, adapter: LoraAdapter, changes: Sequence[Change], device: torch.device) -> None:
        loras = [change for change in changes if change.placement.part.is_lora]
        self._factors = [_Factors(adapter, change, device) for change in loras]
        stored = [change for change in changes if not change.placement.part.is_lora]
        self._stored = LoraUpdate(adapter, stored, device=device, dtype=torch.float32) if stored else None
        self._replaces = any(change.placement.part.kind is PartKind.WHOLE for change in stored)

    def merged(self, first: int, base: Tensor, replay: Replay, strength: float = 1.0) -> Tensor:
        """Rows `first` to `first + len(base)` in the replay's dtype; `base` is W0 as stored."""
        rows = base.to(replay.dtype)
        if self._stored is not None:
            stored = self._stored.rows(first, torch.zeros_like(base, dtype=torch.float32))
            rows = stored.to(replay.dtype) if self._replaces else (rows + stored).to(replay.dtype)
        for factors in self._factors:
            rows = factors.added_to(rows, first, replay, strength)
        return rows

    def update(self, first: int, base: Tensor) -> Tensor:
        """L in float32."""
        wide = base.float()
        added = torch.zeros_like(wide) if self._stored is None else self._stored.rows(first, wide)
        for factors in self._factors:
            added += factors.update(first, len(base))
        return added

    @property
    def rank(self) -> int:
        return sum(factors.rank for factors in self._factors)


class _Factors:
    """scale * left right, where left and right are B and A, or A' and B'."""

    def __init__(self, adapter: LoraAdapter, change: Change, device: torch.device) -> None:
        down, up = (factor.to(device) for factor in adapter.factors(change.placement.part))
        self._left, self._right = (down.T, up.T) if change.placement.is_transposed else (up, down)
        self._scale = change.scale
        self.rank = down.shape[0]

    def update(self, first: int, rows: int) -> Tensor:
        return self._product(first, rows, None) * self._scale

    def added_to(self, rows: Tensor, first: int, replay: Replay, strength: float) -> Tensor:
        scale = self._scale * strength
        if replay.is_fused:
            left, right = self._left[first : first + len(rows)].to(rows), self._right.to(rows)
            return torch.addmm(rows, left, right, alpha=scale)
        product = self._product(first, len(rows), replay.factors)
        if replay.product is not None:
            product = product.to(replay.product)
        update = product * scale
        if replay.update is not None:
            update = update.to(replay.update)
        return (rows + update).to(rows.dtype)

    def _product(self, first: int, rows: int, dtype: torch.dtype | None) -> Tensor:
        left, right = self._left[first : first + rows], self._right
        if dtype is not None:
            left, right = left.to(dtype), right.to(dtype)
        return left.float() @ right.float()
