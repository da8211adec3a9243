"""Measures one tensor: what the adapter adds to it, beside what finetuning changed and the best LoRA of its rank."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deltarank.adapters import Change, LoraAdapter, LoraUpdate, NewBias
from deltarank.checkpoints import Pair, SummedTensor
from deltarank.jobs.verify.overlap import Overlap, overlap
from deltarank.jobs.verify.uncounted import NOT_FINITE_UPDATE
from deltarank.jobs.verify.verdict import NEW_BIAS
from deltarank.results import FitEnergies, Outcome, TensorChange, TensorFit
from deltarank.runtime import (
    FIXED_MEMORY,
    PROMISED_MEMORY,
    TENSOR_FAILURES,
    SolverOptions,
    failure_outcome,
)
from deltarank.spectra import Sums, Workspace, choose_solver, make_solver, measure_spectrum

Target = Pair | SummedTensor

TOLERANCE = 1e-5
"""Largest error of the best possible loss, in cosine distance: small enough to say "within 0.01 % of optimal"."""

MOST_ENTRIES = 1 << 29
"""A larger matrix is not held whole (2 GiB in float32), so what the best LoRA keeps of it is not computed."""


@dataclass(frozen=True)
class FitTask:
    """A tensor that both checkpoints have."""

    pair: Target


class FitMeasurer:
    """Measures one tensor after another, in one thread.

    Args:
        changes: what the adapter changes, by tensor name.
    """

    def __init__(self, adapter: LoraAdapter, changes: Mapping[str, Sequence[Change]], options: SolverOptions) -> None:
        self._adapter, self._changes, self._options = adapter, changes, options
        self._workspace = Workspace(options.torch_device)

    def results(self, tasks: Sequence[FitTask]) -> list[TensorFit]:
        return [self.result(task.pair) for task in tasks]

    def result(self, target: Target) -> TensorFit:
        """A tensor that cannot be read or computed gives a row with that outcome."""
        changes = self._changes.get(target.name, ())
        try:
            return self._measured(target, changes)
        except TENSOR_FAILURES as error:
            return _without_figures(target, changes, *failure_outcome(error))

    def _measured(self, target: Target, changes: Sequence[Change]) -> TensorFit:
        rank = _largest_rank(changes)
        delta = self._buffer(target, rank)
        sums, seen = overlap(target, self._update(changes), self._workspace, keep=delta)
        if not sums.is_finite:
            return _without_figures(target, changes, Outcome.NOT_FINITE, "a checkpoint contains NaN or Inf here")
        if not seen.is_finite:
            return _without_figures(target, changes, Outcome.NOT_FINITE, NOT_FINITE_UPDATE)
        best = self._least_loss(target, sums, rank, delta)
        if rank is not None and best is not None:
            best = min(best, seen.lost)  # the solver overstates the least loss, by up to its tolerance
        outcome = Outcome.IDENTICAL if sums.is_zero else Outcome.MEASURED
        return _row(target, changes, outcome, _energies(sums, seen, best))

    def _update(self, changes: Sequence[Change]) -> LoraUpdate | None:
        if not changes:
            return None
        return LoraUpdate(self._adapter, changes, device=self._options.torch_device, dtype=self._options.torch_dtype)

    def _buffer(self, target: Target, rank: int | None) -> Tensor | None:
        """Holds the delta whole, where the least loss has to be solved for."""
        if not rank or rank >= min(target.base.shape) or target.entries > MOST_ENTRIES:
            return None
        return self._workspace.empty("delta", target.base.shape, self._options.torch_dtype)

    def _least_loss(self, target: Target, sums: Sums, rank: int | None, delta: Tensor | None) -> float | None:
        """The least ||D - X||^2 over all X of this rank; a rank of None is a tensor that is replaced whole."""
        if rank is None or sums.is_zero or rank >= min(target.base.shape):
            return 0.0
        if rank == 0:
            return sums.energy
        if delta is None:
            return None
        rows, columns = target.base.shape
        solver = make_solver(
            choose_solver("auto", rows, columns, (rank,), self._options.torch_device, tolerance=TOLERANCE),
            self._workspace,
            tolerance=TOLERANCE,
            seed=zlib.crc32(target.name.encode()),
        )
        spectrum = measure_spectrum(
            delta, sums.energy, ranks=(rank,), solver=solver, edge=math.inf, workspace=self._workspace
        )
        return spectrum.lost(rank)


def _energies(sums: Sums, seen: Overlap, best: float | None) -> FitEnergies:
    return FitEnergies(sums.energy, seen.lost, best, seen.inner, seen.added, seen.rounded_lost, seen.rounded_inner)


def parallel_tensors(targets: Sequence[Target], device: torch.device) -> int:
    """How many tensors are measured at a time: two, if the two largest stay within PROMISED_MEMORY."""
    largest = max((target.base.shape for target in targets), key=math.prod, default=(0, 0))
    delta = 4.0 * math.prod(largest)
    two = 2 * (delta + 8.0 * min(largest) ** 2)  # a delta, its Gram matrix, and the solver's copy of that
    has_one_core = device.type == "cpu" and torch.get_num_threads() == 1
    return 1 if has_one_core or FIXED_MEMORY + two > PROMISED_MEMORY + 3 * delta else 2


def new_bias_row(adapter: LoraAdapter, bias: NewBias) -> TensorFit:
    """The row of a bias that neither checkpoint has: all that the adapter adds there leads away from the finetune."""
    target, values = bias.weight, bias.scale * adapter.read(bias.part.up).to(torch.float64)
    energy = float(values.square().sum())
    is_finite = math.isfinite(energy)
    return TensorFit(
        name=bias.part.tensor,
        layer=target.layer if isinstance(target, Pair) else None,
        module=f"{target.module if isinstance(target, Pair) else bias.part.module}.bias",
        shape=tuple(bias.part.up.shape),
        outcome=Outcome.MEASURED if is_finite else Outcome.NOT_FINITE,
        change=TensorChange.WHOLE,
        energies=FitEnergies(0.0, energy, 0.0, 0.0, energy, energy, energy) if is_finite else FitEnergies(),
        reason=NEW_BIAS if is_finite else NOT_FINITE_UPDATE,
    )


def _largest_rank(changes: Sequence[Change]) -> int | None:
    """The largest rank that the update can have; None if it is not bounded."""
    parts = [change.placement.part for change in changes]
    return sum(part.rank for part in parts) if all(part.is_lora for part in parts) else None


def _how(changes: Sequence[Change]) -> TensorChange:
    if not changes:
        return TensorChange.NONE
    return TensorChange.LORA if all(change.placement.part.is_lora for change in changes) else TensorChange.WHOLE


def _without_figures(target: Target, changes: Sequence[Change], outcome: Outcome, reason: str) -> TensorFit:
    return replace(_row(target, changes, outcome, FitEnergies()), reason=reason)


def _row(target: Target, changes: Sequence[Change], outcome: Outcome, energies: FitEnergies) -> TensorFit:
    how = _how(changes)
    return TensorFit(
        name=target.name,
        layer=target.layer if isinstance(target, Pair) else None,
        module=target.module if isinstance(target, Pair) else target.name.removesuffix(".weight"),
        shape=tuple(target.shape),
        outcome=outcome,
        change=how,
        rank=_largest_rank(changes) or 0 if how is TensorChange.LORA else 0,
        scale=changes[-1].scale if how is TensorChange.LORA else None,
        energies=energies,
    )
