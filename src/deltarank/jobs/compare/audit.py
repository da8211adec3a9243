"""Measures some random matrices again by a full SVD in float64, and states the deviation."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from deltarank.results import AuditRow, Loss, MatrixResult, Outcome
from deltarank.runtime import DeltaReader, ProgressListener, SolverOptions, Step
from deltarank.spectra import reference_singular_values


def audit_matrices(
    steps: Sequence[Step],
    matrices: Sequence[MatrixResult],
    number: int,
    options: SolverOptions,
    progress: ProgressListener,
) -> tuple[AuditRow, ...]:
    """One row a matrix. The same results give the same sample.

    Args:
        matrices: the results of `steps`, in their order.
        number: the size of the sample.
    """
    pairs = zip(steps, matrices, strict=True)
    measured = [(step, matrix) for step, matrix in pairs if matrix.outcome is Outcome.MEASURED]
    sample = random.Random(len(measured)).sample(measured, min(number, len(measured)))
    reader = DeltaReader(replace(options, dtype="float64", device="cpu"))
    rows = []
    for step, matrix in sample:
        progress.stage(f"audit of {matrix.name}")
        rows.append(_largest_deviation(reader, step, matrix))
    return tuple(rows)


def _largest_deviation(reader: DeltaReader, step: Step, result: MatrixResult) -> AuditRow:
    """The row of the rank at which the result is furthest from the full SVD."""
    delta, sums = reader.read(step.pair)
    energies = reference_singular_values(delta).square()
    return max((_row(result, loss, energies, sums.energy) for loss in result.losses), key=lambda row: row.deviation)


def _row(result: MatrixResult, loss: Loss, energies: Tensor, energy: float) -> AuditRow:
    tail = float(energies.flip(0).cumsum(0).flip(0)[loss.rank]) if loss.rank < len(energies) else 0.0
    exact = Loss.from_energy(loss.rank, lost=tail, total=energy, entries=result.entries)
    return AuditRow(result.name, loss.rank, loss.cosine_distance, exact.cosine_distance)
