"""Where one matrix becomes two factors: a pair is read, its factors are found, rounded, measured and kept as a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from deltarank.adapters import write_factors
from deltarank.jobs.extract.layout import Target
from deltarank.jobs.extract.result import AdapterMatrix
from deltarank.results import Loss, Outcome
from deltarank.runtime import TENSOR_FAILURES, DeltaReader, SolverOptions, Step, as_output_error, failure_outcome
from deltarank.spectra import Factors, Sums, Workspace, factorise, residual_energy


class Extractor:
    """Makes the factors of one matrix after another, in one thread.

    Args:
        dtype: that A and B are stored in.
        place: where the factors of a tensor, by name, are kept.
    """

    def __init__(
        self, settings: SolverOptions, targets: Mapping[str, Target], dtype: torch.dtype, place: Callable[[str], Path]
    ) -> None:
        self._reader = DeltaReader(settings)
        self._workspace = Workspace(settings.torch_device)
        self._targets = targets
        self._dtype = dtype
        self._place = place

    def results(self, steps: Sequence[Step]) -> list[AdapterMatrix]:
        return [self.result(step) for step in steps]

    def result(self, step: Step) -> AdapterMatrix:
        """A matrix that fails is a result too.

        Raises:
            OutputError: the factors cannot be kept.
        """
        target = self._targets[step.pair.name]
        try:
            delta, sums = self._reader.read(step.pair)
            return self._extracted(target, delta, sums)
        except TENSOR_FAILURES as error:
            return blank(target, *failure_outcome(error))

    def _extracted(self, target: Target, delta: Tensor, sums: Sums) -> AdapterMatrix:
        if not sums.is_finite:
            return blank(target, Outcome.NOT_FINITE, Outcome.NOT_FINITE.sentence)
        known = replace(blank(target, Outcome.IDENTICAL), energy=sums.energy, base_energy=sums.base_energy)
        if sums.is_zero:
            return replace(known, losses=(_loss(target, 0.0, 0.0),), written=_loss(target, 0.0, 0.0))
        found = factorise(delta, target.rank, energy=sums.energy, workspace=self._workspace)
        a, b = _stored(found, target, self._dtype)
        left, right = (a.T, b.T) if target.transposed else (b, a)
        lost = residual_energy(delta, left, right, self._workspace)
        path = self._place(target.pair.name)
        with as_output_error(path.parent):
            write_factors(path, a, b)
        return replace(
            known,
            outcome=Outcome.MEASURED,
            losses=(_loss(target, found.lost, sums.energy),),
            written=_loss(target, lost, sums.energy),
        )


def blank(target: Target, outcome: Outcome, reason: str | None = None) -> AdapterMatrix:
    pair = target.pair
    return AdapterMatrix(
        pair.name, target.module, pair.layer, pair.module, pair.shape, outcome, target.rank, reason=reason
    )


def _loss(target: Target, lost: float, energy: float) -> Loss:
    return Loss.from_energy(target.rank, lost=lost, total=energy, entries=target.pair.entries)


def _stored(found: Factors, target: Target, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A (rank, inputs) and B (outputs, rank) as they are written: rounded, and padded with zeros.

    Raises:
        ValueError: a number is too large for the dtype.
    """
    b, a = (found.right.T, found.left.T) if target.transposed else (found.left, found.right)
    missing = target.rank - a.shape[0]
    a = torch.nn.functional.pad(a, (0, 0, 0, missing)).to(dtype)
    b = torch.nn.functional.pad(b, (0, missing)).to(dtype)
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        raise ValueError(f"a factor holds numbers too large for {str(dtype).removeprefix('torch.')}")
    return a, b
