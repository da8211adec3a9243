"""What an adapter whose factors were fitted to predictions keeps of the change in the weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from deltarank.adapters import open_adapter
from deltarank.checkpoints import Checkpoint
from deltarank.jobs.extract import AdapterMatrix, ExtractedAdapter
from deltarank.jobs.verify import VerifyJob
from deltarank.results import TensorFit, WrittenLoss
from deltarank.runtime import ProgressListener, SolverOptions


def with_weights_kept(
    plain: ExtractedAdapter, folder: Path, pair: tuple[Checkpoint, Checkpoint], device: str, progress: ProgressListener
) -> ExtractedAdapter:
    """The plain adapter with the budget, and the losses as written, of the fitted factors, as `verify` measures them.

    Args:
        folder: of the adapter with the fitted factors.
        pair: the base and the finetune.
    """
    with open_adapter(folder) as lora:
        rows = VerifyJob(lora, *pair, None, SolverOptions(device=device)).fits(progress)
    compared = {row.name: row for row in rows if row.is_compared}
    return replace(
        plain,
        budget=plain.budget.calibrated_to(_energy_kept(list(compared.values()))),
        matrices=tuple(_as_written(each, compared.get(each.name)) for each in plain.matrices),
    )


def _energy_kept(rows: Sequence[TensorFit]) -> float:
    """sum ||D||^2 - ||D - L||^2 over all tensors, with what the adapter adds, L.

    Tensors that the adapter leaves alone add nothing, also those that --include and --exclude left out.
    """
    return math.fsum(row.energies.energy - row.energies.lost for row in rows)


def _as_written(matrix: AdapterMatrix, row: TensorFit | None) -> AdapterMatrix:
    """The matrix with the loss of its fitted factors. Of one that did not change, they stay zero and lose nothing."""
    if matrix.written is None or row is None or row.energies.energy <= 0:
        return matrix
    fit = row.energies
    written = WrittenLoss.of_fit(
        matrix.rank, lost=fit.lost, total=fit.energy, cosine=fit.cosine or 0.0, entries=math.prod(matrix.shape)
    )
    return replace(matrix, written=written)
