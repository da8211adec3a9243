"""A comparison of two open checkpoints: its plan, and its run."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltarank.checkpoints import Checkpoint, Pairing, Prefetcher, pair_checkpoints
from deltarank.errors import ResultsError
from deltarank.jobs.compare.audit import audit_matrices
from deltarank.jobs.compare.base_check import base_warning
from deltarank.jobs.compare.measure import MatrixMeasurer, group_small_matrices
from deltarank.jobs.compare.options import CompareOptions
from deltarank.jobs.compare.quantised_base import quantised_base_notes
from deltarank.jobs.compare.spectrum_detail import SpectrumDetail
from deltarank.jobs.compare.tensor_sums import sum_tensor
from deltarank.jobs.compare.verdict import judge
from deltarank.results import (
    AuditRow,
    MatrixResult,
    Results,
    Skipped,
    from_record,
    to_plain,
)
from deltarank.runtime import (
    READ_RATE,
    RETRIED_OUTCOMES,
    DeltaReader,
    PartOfJob,
    Plan,
    ProgressListener,
    Record,
    RunFolder,
    TimeEstimate,
    estimate_time,
    make_plan,
    matrix_pass,
    planned_seconds,
    run_provenance,
    utc_timestamp,
)
from deltarank.system import tool_version

if TYPE_CHECKING:
    from deltarank.jobs.compare.calibrated_plan import CalibratedPlan

BYTES_A_PAGE = 6_000_000
"""Disk space for the report and the pictures of a run."""


@dataclass(frozen=True)
class CompareJob:
    """Two open checkpoints and the options of their comparison."""

    base: Checkpoint
    finetune: Checkpoint
    options: CompareOptions

    @cached_property
    def pairing(self) -> Pairing:
        options = self.options
        return pair_checkpoints(
            self.base, self.finetune, include=options.include, exclude=options.exclude, experts=True
        )

    @cached_property
    def plan(self) -> Plan:
        return self.calibrated_plan or make_plan(self.base, self.finetune, self.pairing, self.options)

    @cached_property
    def calibrated_plan(self) -> CalibratedPlan | None:
        """The plan if there is a calibration text. Raises what `with_calibration` raises."""
        if not self.options.calibration_texts:
            return None
        from deltarank.jobs.compare.calibrated_plan import with_calibration  # imports transformers

        plan = make_plan(self.base, self.finetune, self.pairing, self.options)
        return with_calibration(plan, (self.base, self.finetune), self.options)

    @property
    def identity(self) -> dict[str, Any]:
        """What must be equal for one process to resume the work of another."""
        return {
            "tool_version": tool_version(),
            "base": self.base.fingerprint,
            "finetune": self.finetune.fingerprint,
            "settings": self.options.to_plain(),
            **self.options.calibration_identity(),
        }

    def run(self, output: Path | None, *, force: bool = False, progress: ProgressListener) -> Results:
        """Measures all matrices, or resumes; see `deltarank.compare`.

        Args:
            output: the folder of the run; None: nothing is written.
        """
        if output is None:
            return CompareRun(self, progress, None).results()
        with RunFolder(output, self.identity) as folder:
            if not force and (finished := folder.finished) is not None:
                progress.noted(f"{output} already contains this run; its results are used.")
                return self._with_audit(finished, folder, progress)
            run = CompareRun(self, progress, folder)
            records = folder.open(force=force, needed_bytes=self.result_bytes)
            progress.writing(output)
            run.resume(records)
            results = run.results()
            folder.finish(results)
            return results

    @property
    def result_bytes(self) -> float:
        """Disk space for the results and the report."""
        detail = SpectrumDetail.of_run(len(self.plan.steps), self.options.ranks)
        return detail.nbytes * len(self.plan.steps) + BYTES_A_PAGE

    def check_output(self, output: Path, *, force: bool = False) -> None:
        """Raises OutputError if `run` could not write there."""
        folder = RunFolder(output, self.identity)
        if force or folder.finished is None:
            folder.check(force=force, needed_bytes=self.result_bytes)

    def _with_audit(self, finished: Results, folder: RunFolder, progress: ProgressListener) -> Results:
        """The results of a finished run, with a new audit if a larger one is requested."""
        if self.options.audit <= len(finished.audit):
            return finished
        rows = self.audit(finished.matrices, progress)
        if len(rows) <= len(finished.audit):
            return finished
        audited = replace(finished, audit=rows)
        folder.save(audited)
        return audited

    def audit(self, matrices: Sequence[MatrixResult], progress: ProgressListener) -> tuple[AuditRow, ...]:
        return audit_matrices(self.plan.steps, matrices, self.options.audit, self.options, progress)


@dataclass
class CompareRun:
    """One pass over a plan. Tensors stay inside the workers; only numbers come here.

    matrices  the results so far, by tensor name
    skipped   the tensors of which only the size of the change is measured, by name
    seconds   what earlier parts of this process spent on it
    """

    job: CompareJob
    progress: ProgressListener
    folder: RunFolder | None
    matrices: dict[str, MatrixResult] = field(default_factory=dict)
    skipped: dict[str, Skipped] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def resume(self, records: Sequence[Record]) -> None:
        """Takes what an earlier process finished. A line that cannot be read is measured again."""
        for record in records:
            with suppress(ResultsError):
                if "losses" in record:
                    matrix = MatrixResult.from_record(record, self.job.options.ranks)
                    self.matrices[matrix.name] = matrix
                else:
                    skipped = from_record(Skipped, record)
                    self.skipped[skipped.name] = skipped
        if finished := len(self.matrices) + len(self.skipped):
            self.progress.resumed(finished)

    def results(self) -> Results:
        started = time.perf_counter()
        plan = self.job.plan
        self.progress.planned(plan)
        checkpoints = (self.job.base, self.job.finetune)
        reader = DeltaReader(self.job.options)
        if warning := base_warning(plan, reader, self.matrices, checkpoints):
            self.warnings.append(warning)
            self.progress.warned(warning)
        finished = self.matrices.keys() | self.skipped.keys()
        estimate = estimate_time(plan, finished, checkpoints, self._progress_of_weights())
        self._measure_all(estimate)
        self._sum_all(reader, estimate)
        self._measure_activations()
        self.progress.stage("the verdict")
        return self._collected(started)

    def _measure_all(self, estimate: TimeEstimate) -> None:
        plan, options = self.job.plan, self.job.options
        waiting = [step for step in plan.steps if step.pair.name not in self.matrices]
        results = matrix_pass(
            group_small_matrices(waiting),
            partial(MatrixMeasurer, options, matrices=len(plan.steps)),
            seconds=planned_seconds,
            workers=plan.parallel_matrices,
            device=options.torch_device,
            progress=self.progress,
            estimate=estimate,
        )
        with closing(results):
            for result in results:
                self.matrices[result.name] = result
                if result.outcome not in RETRIED_OUTCOMES:
                    self._keep(to_plain(result))

    def _sum_all(self, reader: DeltaReader, estimate: TimeEstimate) -> None:
        waiting = [tensor for tensor in self.job.plan.pairing.summed if tensor.name not in self.skipped]
        prefetcher = Prefetcher(waiting)
        for number, tensor in enumerate(waiting):
            prefetcher.reached(number)
            self.progress.began(tensor.name)
            skipped = sum_tensor(tensor, reader)
            self.skipped[tensor.name] = skipped
            if skipped.outcome not in RETRIED_OUTCOMES:
                self._keep(to_plain(skipped))
            estimate.add(tensor.name, tensor.nbytes / READ_RATE)

    def _progress_of_weights(self) -> ProgressListener:
        plan = self.job.calibrated_plan
        if plan is None:
            return self.progress
        return PartOfJob(self.progress, seconds=plan.work_seconds, after=plan.activations.seconds)

    def _measure_activations(self) -> None:
        """With a calibration text: adds the activation-weighted losses to the results of the matrices."""
        plan = self.job.calibrated_plan
        if plan is None:
            return
        from deltarank.jobs.compare.activation_losses import ActivationLosses  # imports transformers

        progress = PartOfJob(self.progress, before=plan.work_seconds, seconds=plan.activations.seconds)
        losses = ActivationLosses(plan.activations, self.job.options, self.matrices, progress)
        for name, loss in losses.measure():
            self.matrices[name] = replace(self.matrices[name], activation_loss=loss)
            self._keep(to_plain(self.matrices[name]))
        self.warnings += losses.notes()

    def _keep(self, record: Record) -> None:
        if self.folder is not None:
            self.folder.append(record)

    def _collected(self, started: float) -> Results:
        job, plan = self.job, self.job.plan
        matrices = tuple(self.matrices[step.pair.name] for step in plan.steps)
        skipped = self._skipped_with_shares(matrices)
        seconds = self.seconds + time.perf_counter() - started
        return Results(
            base=plan.base,
            finetune=plan.finetune,
            settings={**job.options.to_plain(), **run_provenance(seconds)},
            matrices=matrices,
            skipped=skipped,
            verdict=judge(matrices, skipped, plan.finetune.short_name, adapter=job.finetune.added),
            tool_version=tool_version(),
            created=utc_timestamp(),
            notes=(*plan.notes, *self.warnings, *self._quantised_base()),
            audit=job.audit(matrices, self.progress),
            adapter=job.finetune.added,
            calibration_text=job.calibrated_plan.activations.text_read if job.calibrated_plan else None,
        )

    def _quantised_base(self) -> tuple[str, ...]:
        is_stored = self.job.finetune.added is None
        return quantised_base_notes(self.job.plan.steps, self.matrices) if is_stored else ()

    def _skipped_with_shares(self, matrices: Sequence[MatrixResult]) -> tuple[Skipped, ...]:
        """Shares are of the energy of all that both checkpoints have, as far as it could be read."""
        pairing = self.job.plan.pairing
        summed = [self.skipped[tensor.name] for tensor in pairing.summed]
        whole = math.fsum([*(m.energy for m in matrices), *(s.energy or 0.0 for s in summed)])
        shared = [replace(s, share=s.energy / whole) if s.energy is not None and whole > 0 else s for s in summed]
        return (*shared, *pairing.skipped)
