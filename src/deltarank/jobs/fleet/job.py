"""A fleet: its plan, and its run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deltarank.checkpoints import Checkpoint, SharedSource
from deltarank.errors import DeltarankError, JobError
from deltarank.jobs.compare import CompareJob
from deltarank.jobs.extract import ExtractionPlan, ExtractJob
from deltarank.jobs.fleet.finetunes import Listed, list_finetunes
from deltarank.jobs.fleet.folder import FleetFolder
from deltarank.jobs.fleet.kinship import find_kinship
from deltarank.jobs.fleet.member import Member
from deltarank.jobs.fleet.options import FleetOptions
from deltarank.jobs.fleet.plan import FleetPlan, PlannedFinetune
from deltarank.jobs.fleet.rank_plan import PlanOptions, plan_ranks
from deltarank.jobs.fleet.run import FleetRun
from deltarank.jobs.fleet.sketches import load_sketches
from deltarank.results import Fleet, RankPlan
from deltarank.runtime import (
    ModelRef,
    ProgressListener,
    Ref,
)
from deltarank.servers import slot_numbers
from deltarank.system import tool_version


@dataclass(frozen=True)
class FleetJob:
    """An open base, whose source is shared, the finetunes as the user listed them, and the options."""

    base: Checkpoint
    shared: SharedSource
    references: Sequence[Ref]
    options: FleetOptions
    fetch: str
    plan_options: PlanOptions | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """What must be equal for a fleet to be continued."""
        return {
            "tool_version": tool_version(),
            "base": self.base.fingerprint,
            "settings": self.options.to_plain(),
        }

    @property
    def base_bytes(self) -> int:
        return sum(info.nbytes for info in self.base.tensors.values())

    def folder(self, output: Path, *, force: bool) -> FleetFolder:
        return FleetFolder(output, self.identity, force=force)

    def plan(self, output: Path, *, force: bool = False) -> FleetPlan:
        """Opens one finetune after another. Nothing is written; raises OutputError if `run` could not write."""
        self._check_plan()
        folder = self.folder(output, force=force)
        listed, notes = list_finetunes(self.references, folder.names)
        folder.check(listed)
        planned = tuple(self._planned(each, folder) for each in listed)
        return FleetPlan(self.base.reference, self.base_bytes, self.options, planned, tuple(notes))

    def run(self, output: Path, *, force: bool = False, progress: ProgressListener) -> Fleet:
        """Measures all finetunes, or resumes; see `deltarank.fleet`."""
        self._check_plan()
        with self.folder(output, force=force) as folder:
            listed, notes = list_finetunes(self.references, folder.names)
            folder.check(listed)
            folder.open(listed)
            progress.writing(output)
            fleet = self._with_kinship(FleetRun(self, folder, progress, notes).fleet(listed), output)
            folder.finish(fleet)  # what was measured is kept if no plan can be made
            if self.plan_options is not None and fleet.measured:
                fleet = replace(fleet, plan=self._ranks_planned(fleet, self.plan_options))
                folder.finish(fleet)
        if not fleet.measured:
            raise _nothing_measured(fleet)
        return fleet

    def _with_kinship(self, fleet: Fleet, output: Path) -> Fleet:
        return replace(fleet, kinship=find_kinship(fleet.finetunes, load_sketches(fleet.finetunes, output)))

    def _check_plan(self) -> None:
        """Before anything is measured; see `PlanOptions.check`."""
        if self.plan_options is not None:
            self.plan_options.check(self.options.ranks, self.base.config)

    def _ranks_planned(self, fleet: Fleet, options: PlanOptions) -> RankPlan:
        shapes = {name: info.shape for name, info in self.base.tensors.items()}
        numbers = slot_numbers(shapes, self.base.config, gpus=options.tensor_parallel)
        return plan_ranks(fleet, options, base_bytes=self.base_bytes, slot_numbers=numbers)

    def open(self, listed: Listed, progress: ProgressListener) -> CompareJob:
        """Opens a finetune and pairs it with the base.

        Raises:
            DeltarankError: what `compare` raises.
        """
        finetune = ModelRef(listed.reference).open_finetune(self.base, self.fetch, progress)
        try:
            job = CompareJob(self.base, finetune, self.options.of_each())
            _ = job.plan
        except BaseException:
            finetune.close()
            raise
        return job

    def _planned(self, listed: Listed, folder: FleetFolder) -> PlannedFinetune:
        try:
            job = self.open(listed, ProgressListener())
        except DeltarankError as error:
            return PlannedFinetune(listed, error.message)
        with job.finetune:
            run = folder.run_of(listed, job)
            member = Member(listed, job, run, results=None if folder.force else run.finished)
            return PlannedFinetune.of(member, self._planned_adapter(job))

    def _planned_adapter(self, job: CompareJob) -> ExtractionPlan | None:
        options = self.options.of_adapters()
        try:
            return None if options is None else ExtractJob(job.base, job.finetune, options).plan
        except DeltarankError:  # the run says why it has no adapter
            return None


def _nothing_measured(fleet: Fleet) -> JobError:
    reasons = [f"{each.name}: {each.reason}" for each in fleet.failed]
    return JobError(
        f"No finetune could be measured. {' '.join(reasons[:2])}",
        cure="Correct the list, and run the command again; fleet.json has the reason of each.",
        slug="no-finetune-measured",
    )
