"""The adapter of a finetune of a fleet. Its factors are computed while the tensors of the base are in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from deltarank.checkpoints import Checkpoint, SummedTensor
from deltarank.jobs.extract import (
    AdapterMatrix,
    ExtractedAdapter,
    ExtractJob,
    ExtractOptions,
    MatrixFactoriser,
    StagingFolder,
    SummedEnergy,
)
from deltarank.results import to_plain
from deltarank.runtime import ProgressListener, Step
from deltarank.spectra import Sums


@dataclass(frozen=True)
class FactorStep(Step):
    """A matrix of one of the finetunes that gets factors."""

    extraction: Extraction = field(compare=False, repr=False)


class Extraction:
    """What `extract` writes of one finetune, made in parts. Its folder is that of `extract -o OUTPUT`.

    steps   the matrices that have no factors yet
    summed  the names of the tensors whose energies are not known yet; biases that the adapter carries are not among
            them: they are read when it is written

    Raises:
        DeltarankError: what `extract` raises before anything is read.
    """

    def __init__(
        self, sides: tuple[Checkpoint, Checkpoint], options: ExtractOptions, output: Path, *, force: bool
    ) -> None:
        self._sides, self._options, self.output = sides, options, output
        job = ExtractJob(*sides, options)
        self._staging = StagingFolder(output, job.identity)
        self.is_finished = self._staging.is_finished and not force
        self.steps: list[FactorStep] = []
        self.summed: set[str] = set()
        self.nbytes = 0.0
        if self.is_finished:
            return
        with self._staging as staging:
            run = job.begin(staging, force=force, progress=ProgressListener())
        self.nbytes = run.plan.adapter_bytes
        self._make_factoriser: Callable[..., MatrixFactoriser] = run.make_factoriser
        biases = {tensor.name for tensor in run.plan.layout.unfactored if tensor.bias_of}
        self.summed = {each.name for each in run.plan.work.pairing.summed} - run.sums.keys() - biases
        self.steps = [FactorStep(step.pair, step.solver, step.seconds, step.memory, self) for step in run.waiting]

    def factoriser(self, buffers: MatrixFactoriser | None) -> MatrixFactoriser:
        return self._make_factoriser(buffers=buffers)

    def keep(self, matrix: AdapterMatrix) -> None:
        with self._staging as staging:
            staging.keep(matrix)

    def keep_sums(self, tensor: SummedTensor, sums: Sums) -> None:
        """Of one of `summed`."""
        energy = sums.energy if sums.is_finite else None
        with self._staging as staging:
            staging.append(to_plain(SummedEnergy(tensor.name, energy)))

    def finish(self, progress: ProgressListener) -> ExtractedAdapter:
        """What `extract` does after the last matrix: the budget, the files, the model card.

        Raises:
            DeltarankError: what `extract` raises.
        """
        return ExtractJob(*self._sides, self._options).run(self.output, progress=progress)


class FactorWorker:
    """Factors matrices of several finetunes, in one thread, in the same buffers."""

    def __init__(self) -> None:
        self._of: dict[Extraction, MatrixFactoriser] = {}

    def results(self, steps: Sequence[FactorStep]) -> list[Callable[[], None]]:
        """What keeps each of them."""
        return [partial(step.extraction.keep, self._factoriser(step.extraction).result(step)) for step in steps]

    def _factoriser(self, extraction: Extraction) -> MatrixFactoriser:
        if extraction not in self._of:
            self._of[extraction] = extraction.factoriser(next(iter(self._of.values()), None))
        return self._of[extraction]
