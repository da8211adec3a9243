"""Factors one matrix: reads the pair, computes A and B, rounds and measures them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from deltarank.adapters import is_adapted, own_copy, write_factors
from deltarank.jobs.extract.layout import Target
from deltarank.jobs.extract.result import AdapterMatrix
from deltarank.results import Loss, Outcome, WrittenLoss
from deltarank.runtime import TENSOR_FAILURES, DeltaReader, SolverOptions, Step, as_output_error, failure_outcome
from deltarank.spectra import Factors, RoundingNoise, Sums, Workspace, factorise, residual_energy

AnyLoss = TypeVar("AnyLoss", bound=Loss)


@dataclass(frozen=True)
class FactoredMatrix:
    """The result of a matrix, and A and B as they are to be written; None if it has none."""

    matrix: AdapterMatrix
    factors: tuple[Tensor, Tensor] | None = None

    def write(self, path: Path) -> None:
        """Writes the factors, if there are any.

        Raises:
            OutputError: they cannot be written.
        """
        if self.factors is not None:
            with as_output_error(path.parent):
                write_factors(path, *self.factors)


class MatrixFactoriser:
    """Factors one matrix after another, in one thread.

    Args:
        targets: by tensor name.
        dtype: that A and B are stored in.
        buffers: another one of this thread, whose buffers are used, too.
    """

    def __init__(
        self,
        options: SolverOptions,
        targets: Mapping[str, Target],
        dtype: torch.dtype,
        *,
        buffers: MatrixFactoriser | None = None,
    ) -> None:
        self._reader: DeltaReader = buffers._reader if buffers else DeltaReader(options)
        self._workspace: Workspace = buffers._workspace if buffers else Workspace(options.torch_device)
        self._targets = targets
        self._dtype = dtype

    def results(self, steps: Sequence[Step]) -> list[FactoredMatrix]:
        return [self.result(step) for step in steps]

    def result(self, step: Step) -> FactoredMatrix:
        """A matrix that cannot be read or computed gives a result with that outcome."""
        target = self._targets[step.pair.name]
        try:
            noise = None if is_adapted(step.pair) else RoundingNoise(has_format=step.pair.finetune.storage is not None)
            delta, sums = self._reader.read(step.pair, noise)
            return self._factored(target, delta, sums, noise)
        except TENSOR_FAILURES as error:
            return FactoredMatrix(_without_factors(target, *failure_outcome(error)))

    def _factored(self, target: Target, delta: Tensor, sums: Sums, noise: RoundingNoise | None) -> FactoredMatrix:
        if not sums.is_finite:
            return FactoredMatrix(_without_factors(target, Outcome.NOT_FINITE, Outcome.NOT_FINITE.sentence))
        result = replace(_without_factors(target, Outcome.IDENTICAL), energy=sums.energy, base_energy=sums.base_energy)
        if sums.is_zero:
            losses, written = (_loss(Loss, target, 0.0, 0.0),), _loss(WrittenLoss, target, 0.0, 0.0)
            return FactoredMatrix(replace(result, losses=losses, written=written))
        factors = factorise(delta, target.rank, energy=sums.energy, workspace=self._workspace)
        a, b = _rounded(factors, target, self._dtype)
        left, right = (a.T, b.T) if target.transposed else (b, a)
        lost = residual_energy(delta, left, right, self._workspace)
        measured = replace(
            result,
            **_noise_figures(target, factors, sums, noise),
            outcome=Outcome.MEASURED,
            losses=(_loss(Loss, target, factors.lost, sums.energy),),
            written=_loss(WrittenLoss, target, lost, sums.energy),
        )
        return FactoredMatrix(measured, (own_copy(a), own_copy(b)))


def _noise_figures(target: Target, factors: Factors, sums: Sums, noise: RoundingNoise | None) -> dict[str, Any]:
    """Of stored weights; of an adapter there is no rounding. The share above the edge is known if a value is below."""
    if noise is None:
        return {}
    edge = noise.edge(format_error=target.pair.finetune.rounding_error)
    above = [value for value in factors.values if value > edge]
    is_known = len(above) < len(factors.values) or len(factors.values) == min(target.pair.shape)
    share = min(math.fsum(value * value for value in above) / sums.energy, 1.0) if is_known else None
    return {"rounding_floor": sums.rounding_floor, "noise_edge": edge, "signal_share": share}


def _without_factors(target: Target, outcome: Outcome, reason: str | None = None) -> AdapterMatrix:
    pair = target.pair
    return AdapterMatrix(
        pair.name, target.module, pair.layer, pair.module, pair.shape, outcome, target.rank, reason=reason
    )


def _loss(kind: type[AnyLoss], target: Target, lost: float, energy: float) -> AnyLoss:
    return kind.from_energy(target.rank, lost=lost, total=energy, entries=target.pair.entries)


def _rounded(factors: Factors, target: Target, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A (rank, in_features) and B (out_features, rank) as they are written: rounded, and padded with zeros.

    Raises:
        ValueError: a number is too large for the dtype.
    """
    b, a = (factors.right.T, factors.left.T) if target.transposed else (factors.left, factors.right)
    missing = target.rank - a.shape[0]
    a = torch.nn.functional.pad(a, (0, 0, 0, missing)).to(dtype)
    b = torch.nn.functional.pad(b, (0, missing)).to(dtype)
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        raise ValueError(f"a factor contains numbers too large for {str(dtype).removeprefix('torch.')}")
    return a, b
