"""What an adapter whose factors were fitted to predictions keeps of the change in the weights."""

from __future__ import annotations

import math
from pathlib import Path

from deltarank.adapters import open_adapter
from deltarank.checkpoints import Checkpoint
from deltarank.jobs.verify import VerifyJob
from deltarank.runtime import ProgressListener, SolverOptions


def energy_kept(adapter: Path, pair: tuple[Checkpoint, Checkpoint], device: str, progress: ProgressListener) -> float:
    """sum ||D||^2 - ||D - L||^2 over all tensors, with what the adapter adds, L, as `verify` measures it.

    Tensors that the adapter leaves alone add nothing, also those that --include and --exclude left out.

    Args:
        adapter: its folder.
        pair: the base and the finetune.
    """
    with open_adapter(adapter) as lora:
        rows = VerifyJob(lora, *pair, None, SolverOptions(device=device)).fits(progress)
    return math.fsum(row.energies.energy - row.energies.lost for row in rows if row.is_compared)
