"""A finetune of a fleet while it is measured: its comparison with the base, and the folder of its run."""

from __future__ import annotations

from dataclasses import dataclass, field

from deltarank.checkpoints import SummedTensor
from deltarank.jobs.compare import CompareJob, CompareRun, not_summed, summed
from deltarank.jobs.fleet.extraction import Extraction, Factored
from deltarank.jobs.fleet.finetunes import Listed
from deltarank.jobs.fleet.sketches import SKETCH_OF, length_for, save_sketches
from deltarank.results import MatrixResult, Results, Skipped, to_plain
from deltarank.runtime import RETRIED_OUTCOMES, ProgressListener, RunFolder, Step
from deltarank.spectra import Sums

HEADER_BYTES = 1_500
"""Memory for each tensor of a finetune while it is open: its header, its pair and its plan."""


@dataclass(frozen=True)
class FleetStep(Step):
    """A matrix of one of the finetunes, which has so many."""

    finetune: str
    matrices: int


@dataclass(frozen=True)
class MeasuredMatrix:
    """The result of a matrix of one of the finetunes, and the sketch of its delta if that is not zero."""

    finetune: str
    result: MatrixResult
    sketch: str | None


@dataclass(eq=False)
class Member:
    """An open finetune.

    results     its results, if an earlier process measured it
    extraction  of its adapter, if one is asked for
    finished  the names of the tensors whose results are in the folder
    failed    results that are not kept there, since they may succeed next time
    seconds   of computing time
    """

    listed: Listed
    job: CompareJob
    folder: RunFolder
    results: Results | None = None
    extraction: Extraction | None = None
    finished: set[str] = field(default_factory=set)
    failed: list[MatrixResult | Skipped] = field(default_factory=list)
    seconds: float = 0.0

    def resume(self, *, force: bool) -> None:
        """Takes what an earlier process finished.

        Raises:
            OutputError: the folder holds something else, or cannot be written.
        """
        with self.folder as folder:
            run = CompareRun(self.job, ProgressListener(), folder)
            run.resume(folder.open(force=force, needed_bytes=0))
        self.finished = {*run.matrices, *run.skipped}

    @property
    def is_done(self) -> bool:
        return self.results is not None and (self.extraction is None or self.extraction.is_finished)

    @property
    def header_bytes(self) -> int:
        """Memory that it takes while it is open, about."""
        pairing = self.job.plan.pairing
        tensors = len(pairing.pairs) + len(pairing.summed) + len(pairing.skipped)
        return HEADER_BYTES * tensors * (2 if self.extraction else 1)

    @property
    def needed_bytes(self) -> float:
        """Disk space, about."""
        adapter = 0 if self.extraction is None else self.extraction.nbytes
        return adapter + (self.job.result_bytes if self.results is None else 0)

    @property
    def steps(self) -> list[FleetStep]:
        """The matrices that are to be measured."""
        if self.results is not None:
            return []
        steps, name = self.job.plan.steps, self.listed.name
        return [
            FleetStep(step.pair, step.solver, step.seconds, step.memory, name, len(steps))
            for step in steps
            if step.pair.name not in self.finished
        ]

    @property
    def summed(self) -> list[SummedTensor]:
        """The tensors that are to be summed, for the results or for the adapter."""
        return [each for each in self.job.plan.pairing.summed if self._lacks(each) or self._adapter_lacks(each)]

    def _lacks(self, tensor: SummedTensor) -> bool:
        return self.results is None and tensor.name not in self.finished

    def _adapter_lacks(self, tensor: SummedTensor) -> bool:
        return self.extraction is not None and tensor.name in self.extraction.summed

    def take_sums(self, tensor: SummedTensor, found: Sums | Exception) -> None:
        """The sums of a tensor, or what failed."""
        if isinstance(found, Sums):
            found = found.with_format_error(tensor.finetune.rounding_error)
        if self._lacks(tensor):
            self.keep(summed(tensor, found) if isinstance(found, Sums) else not_summed(tensor, found))
        if self.extraction is not None and self._adapter_lacks(tensor) and isinstance(found, Sums):
            self.extraction.keep_sums(tensor, found)

    def take(self, found: MeasuredMatrix | Factored) -> None:
        """Keeps what a worker found."""
        if isinstance(found, MeasuredMatrix):
            self.seconds += found.result.seconds or 0.0
            self.keep(found.result, found.sketch)
        elif self.extraction is not None:
            self.extraction.keep(found.found)

    def keep(self, result: MatrixResult | Skipped, sketch: str | None = None) -> None:
        """Writes a result to the folder, which is closed again: hundreds of runs would be too many open files.

        The sketch comes first, so that no process that resumes lacks that of a finished matrix.
        """
        if result.outcome in RETRIED_OUTCOMES:
            self.failed.append(result)
            return
        with self.folder as folder:
            if sketch is not None:
                folder.append({SKETCH_OF: result.name, "numbers": sketch})
            folder.append(to_plain(result))

    def finish(self, progress: ProgressListener) -> Results:
        """What `compare` does after the last tensor: the verdict, the audit, results.json."""
        if self.results is not None:
            return self.results
        with self.folder as folder:
            run = CompareRun(self.job, progress, folder, seconds=self.seconds)
            records = folder.open(force=False, needed_bytes=0)
            run.resume(records)
            for result in self.failed:
                if isinstance(result, MatrixResult):
                    run.matrices[result.name] = result
                else:
                    run.skipped[result.name] = result
            results = run.results()
            save_sketches(records, results.measured, length_for(self.job.base), self.folder.folder)
            folder.finish(results)
            return results

    def close(self) -> None:
        self.job.finetune.close()
