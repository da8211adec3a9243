"""Reads a pair of tensors as their difference, some rows at a time, into buffers that are used again."""

from __future__ import annotations

from torch import Tensor

from deltarank.checkpoints import Pair, SummedTensor, read_chunks
from deltarank.runtime.solver_options import SolverOptions
from deltarank.spectra import RoundingNoise, Sums, Workspace, subtract


class DeltaReader:
    """Reads deltas in one thread. The code that computes with a delta uses the other buffers of `workspace`."""

    def __init__(self, options: SolverOptions) -> None:
        self.workspace = Workspace(options.torch_device)
        self._dtype = options.torch_dtype

    def read(self, pair: Pair, noise: RoundingNoise | None = None) -> tuple[Tensor, Sums]:
        """D = W - W0, (rows, columns), in a buffer that the next call overwrites, and its sums.

        Args:
            noise: takes the errors that rounding is expected to have left in D.

        Raises:
            CheckpointError: a file cannot be read.
        """
        delta = self.workspace.empty("delta", pair.shape, self._dtype)
        total = Sums()
        for first, base, finetune in read_chunks(pair.base, pair.finetune):
            rows = delta[first : first + len(finetune)]
            total += subtract(base, finetune, out=rows, workspace=self.workspace, noise=noise)
        return delta, total.with_format_error(pair.finetune.rounding_error)

    def sums(self, pair: SummedTensor | Pair) -> Sums:
        """The sums of D alone: D is never whole in memory.

        Raises:
            CheckpointError: a file cannot be read.
        """
        total = Sums()
        for _, base, finetune in read_chunks(pair.base, pair.finetune):
            rows = self.workspace.empty("chunk", tuple(finetune.shape), self._dtype)
            total += subtract(base, finetune, out=rows, workspace=self.workspace)
        return total.with_format_error(pair.finetune.rounding_error)
