"""The adapter of a finetune of a fleet. Its factors are computed while the tensors of the base are in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from deltarank.checkpoints import Checkpoint, SummedTensor
from deltarank.jobs.extract import (
    ExtractedAdapter,
    ExtractJob,
    ExtractOptions,
    FactoredMatrix,
    MatrixFactoriser,
    StagingFolder,
    SummedEnergy,
)
from deltarank.results import to_plain
from deltarank.runtime import ProgressListener, Step
from deltarank.spectra import Sums


@dataclass(frozen=True)
class FactorStep(Step):
    """A matrix of one of the finetunes that gets factors: `make_factoriser` makes the worker for it alone."""

    finetune: str
    make_factoriser: Callable[..., MatrixFactoriser]


@dataclass(frozen=True)
class Factored:
    """A matrix of one of the finetunes with its factors."""

    finetune: str
    found: FactoredMatrix


class Extraction:
    """What `extract` writes of one finetune, made in parts. Its folder is that of `extract -o OUTPUT`.

    steps   the matrices that have no factors yet
    summed  the names of the tensors whose energies are not known yet; biases that the adapter carries are not among
            them: they are read when it is written

    Raises:
        DeltarankError: what `extract` raises before anything is read.
    """

    def __init__(
        self,
        finetune: str,
        sides: tuple[Checkpoint, Checkpoint],
        options: ExtractOptions,
        output: Path,
        *,
        force: bool,
    ) -> None:
        """`finetune`: its name in the fleet."""
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
        self._factors_path = run.factors_path
        biases = {tensor.name for tensor in run.plan.layout.unfactored if tensor.bias_of}
        self.summed = {each.name for each in run.plan.work.pairing.summed} - run.sums.keys() - biases
        self.steps = [
            FactorStep(*(step.pair, step.solver, step.seconds, step.memory), finetune, run.make_factoriser([step]))
            for step in run.waiting
        ]

    def keep(self, found: FactoredMatrix) -> None:
        found.write(self._factors_path(found.matrix.name))
        with self._staging as staging:
            staging.keep(found.matrix)

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
        self._last: MatrixFactoriser | None = None

    def results(self, steps: Sequence[FactorStep]) -> list[Factored]:
        return [Factored(step.finetune, self._factoriser(step).result(step)) for step in steps]

    def _factoriser(self, step: FactorStep) -> MatrixFactoriser:
        self._last = step.make_factoriser(buffers=self._last)
        return self._last
