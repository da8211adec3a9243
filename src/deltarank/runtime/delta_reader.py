"""Reads a pair of tensors as their difference, some rows at a time, into buffers that are used again."""

from __future__ import annotations

import math

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

    def cosine(self, pair: Pair) -> float:
        """cos(W, W0) = <W, W0> / (||W|| ||W0||): about 0 for two models that were trained independently.

        Raises:
            CheckpointError: a file cannot be read.
        """
        product = after = before = 0.0
        for _, base, finetune in read_chunks(pair.base, pair.finetune):
            w0, w = (side.to(self.workspace.device, self._dtype).flatten() for side in (base, finetune))
            product += float(w @ w0)
            after += float(w @ w)
            before += float(w0 @ w0)
        return product / math.sqrt(after * before) if after > 0 < before else 0.0

    def sums(self, pair: SummedTensor | Pair) -> Sums:
        """The sums of D alone: D is never whole in memory.

        Raises:
            CheckpointError: a file cannot be read.
        """
        return self.add_sums(Sums(), pair).with_format_error(pair.finetune.rounding_error)

    def add_sums(self, total: Sums, pair: SummedTensor | Pair, *, first: int = 0, last: int | None = None) -> Sums:
        """`total` and the sums of the rows [first, last) of D, see `read_chunks`; without the error of a format.

        Raises:
            CheckpointError: a file cannot be read.
        """
        for _, base, finetune in read_chunks(pair.base, pair.finetune, first=first, last=last):
            rows = self.workspace.empty("chunk", tuple(finetune.shape), self._dtype)
            total += subtract(base, finetune, out=rows, workspace=self.workspace)
        return total
