"""A finetune of a fleet while it is measured: its comparison with the base, and the folder of its run."""

from __future__ import annotations

from dataclasses import dataclass, field

from deltarank.checkpoints import SummedTensor
from deltarank.jobs.compare import CompareJob, CompareRun
from deltarank.jobs.fleet.finetunes import Listed
from deltarank.jobs.fleet.sketches import SKETCH_OF, length_for, save_sketches
from deltarank.results import MatrixResult, Results, Skipped, to_plain
from deltarank.runtime import RETRIED_OUTCOMES, ProgressListener, RunFolder, Step


@dataclass(frozen=True)
class FleetStep(Step):
    """A matrix of one of the finetunes."""

    member: Member = field(compare=False, repr=False)


@dataclass(eq=False)
class Member:
    """An open finetune.

    finished  the names of the tensors whose results are in the folder
    failed    results that are not kept there, since they may succeed next time
    seconds   of computing time
    """

    listed: Listed
    job: CompareJob
    folder: RunFolder
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
    def steps(self) -> list[FleetStep]:
        """The matrices that are to be measured."""
        return [
            FleetStep(step.pair, step.solver, step.seconds, step.memory, self)
            for step in self.job.plan.steps
            if step.pair.name not in self.finished
        ]

    @property
    def summed(self) -> list[SummedTensor]:
        """The tensors that are to be summed."""
        return [each for each in self.job.plan.pairing.summed if each.name not in self.finished]

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
            save_sketches(records, length_for(self.job.base), self.folder.folder)
            folder.finish(results)
            return results

    def close(self) -> None:
        self.job.finetune.close()
