"""A fleet: its plan, and its run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from deltarank.checkpoints import Checkpoint, SharedSource
from deltarank.errors import DeltarankError, JobError, OutputError
from deltarank.jobs.compare import CompareJob
from deltarank.jobs.fleet.base_pass import BasePass
from deltarank.jobs.fleet.finetunes import Listed, list_finetunes
from deltarank.jobs.fleet.folder import FleetFolder
from deltarank.jobs.fleet.kinship import find_kinship
from deltarank.jobs.fleet.member import Member
from deltarank.jobs.fleet.options import FleetOptions
from deltarank.jobs.fleet.plan import MOST_HEADER_BYTES, FleetPlan, PlannedFinetune
from deltarank.jobs.fleet.rank_plan import PlanOptions, plan_ranks
from deltarank.jobs.fleet.sketches import load_sketches
from deltarank.results import Fleet, FleetFinetune, Results, count
from deltarank.runtime import (
    ModelRef,
    PartOfJob,
    ProgressListener,
    Ref,
    RunFolder,
    run_provenance,
    utc_timestamp,
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
        folder = self.folder(output, force=force)
        listed, notes = list_finetunes(self.references, folder.names)
        folder.check(listed)
        planned = tuple(self._planned(each, folder) for each in listed)
        return FleetPlan(self.base.reference, self.base_bytes, self.options, planned, tuple(notes))

    def run(self, output: Path, *, force: bool = False, progress: ProgressListener) -> Fleet:
        """Measures all finetunes, or resumes; see `deltarank.fleet`."""
        with self.folder(output, force=force) as folder:
            listed, notes = list_finetunes(self.references, folder.names)
            folder.check(listed)
            folder.open(listed)
            progress.writing(output)
            fleet = self._with_relations(FleetRun(self, folder, progress, notes).fleet(listed), output)
            folder.finish(fleet)
        if not fleet.measured:
            raise _nothing_measured(fleet)
        return fleet

    def _with_relations(self, fleet: Fleet, output: Path) -> Fleet:
        """With the kinship of the finetunes, and the rank plan if one is asked for."""
        kinship = find_kinship(fleet.finetunes, load_sketches(fleet.finetunes, output))
        if self.plan_options is None or not fleet.measured:
            return replace(fleet, kinship=kinship)
        numbers = slot_numbers({name: info.shape for name, info in self.base.tensors.items()}, self.base.config)
        plan = plan_ranks(fleet, self.plan_options, base_bytes=self.base_bytes, slot_numbers=numbers)
        return replace(fleet, kinship=kinship, plan=plan)

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
            is_finished = not folder.force and folder.run_of(listed, job).finished is not None
            return PlannedFinetune.of(listed, job.plan, is_finished=is_finished)


@dataclass
class FleetRun:
    """One process that measures a fleet.

    rows     those of the finetunes that are done, by name
    waiting  open finetunes that the next pass over the base measures
    seconds  of the passes that are done, as planned
    """

    job: FleetJob
    folder: FleetFolder
    progress: ProgressListener
    notes: list[str]
    rows: dict[str, FleetFinetune] = field(default_factory=dict)
    waiting: list[Member] = field(default_factory=list)
    seconds: float = 0.0

    def fleet(self, listed: Sequence[Listed]) -> Fleet:
        started = time.perf_counter()
        with ExitStack() as stack:
            for number, each in enumerate(listed):
                self.progress.stage(f"the headers of {each.name}")
                self._begin(each, stack)
                if self._is_full():
                    self._pass(left=len(listed) - number - 1)
            self._pass()
        read = {"base_bytes": self.job.base_bytes, "base_bytes_read": self.job.shared.bytes_read}
        return Fleet(
            base=self.job.base.reference,
            settings={**self.job.options.to_plain(), **run_provenance(time.perf_counter() - started, **read)},
            finetunes=tuple(self.rows[each.name] for each in listed),
            tool_version=tool_version(),
            created=utc_timestamp(),
            notes=tuple(self.notes),
        )

    def _begin(self, listed: Listed, stack: ExitStack) -> None:
        """Opens a finetune. One that cannot be measured, or was, is a row at once."""
        try:
            job = self.job.open(listed, self.progress)
        except OutputError:
            raise
        except DeltarankError as error:
            self._fail(listed, error)
            return
        stack.callback(job.finetune.close)
        run = self.folder.run_of(listed, job)
        try:
            finished = None if self.folder.force else run.finished
            member = Member(listed, job, run)
            if finished is None:
                member.resume(force=self.folder.force)
        except OutputError as error:
            if error.slug != "run-differs":
                raise
            self._fail(listed, _changed(error, run))
            return
        if finished is None:
            self.waiting.append(member)
        else:
            self._add(listed, finished)
            job.finetune.close()

    def _is_full(self) -> bool:
        """Whether the headers of the open finetunes take the memory that is set aside for them."""
        planned = [PlannedFinetune.of(member.listed, member.job.plan).header_bytes for member in self.waiting]
        return sum(planned) + max(planned, default=0) > MOST_HEADER_BYTES

    def _pass(self, *, left: int = 0) -> None:
        """Measures the finetunes that wait. `left`: how many will follow, of whose time nothing is known."""
        if not self.waiting:
            return
        self.folder.check_disk_space(sum(member.job.result_bytes for member in self.waiting))
        done = sum(len(member.finished) for member in self.waiting)
        if done:
            self.progress.resumed(done)
        self.progress.noted(_in_words(self.waiting))
        base_pass = BasePass(self.waiting, self.job.shared, self.job.options)
        seconds = base_pass.seconds
        after = left * seconds / len(self.waiting)
        base_pass.run(PartOfJob(self.progress, before=self.seconds, seconds=seconds, after=after))
        self.seconds += seconds
        for member in self.waiting:
            self._finish(member)
        self.waiting.clear()

    def _finish(self, member: Member) -> None:
        name = member.listed.name
        self.progress.stage(f"the verdict of {name}")
        try:
            self._add(member.listed, member.finish(_WarningsOf(name, self.progress)))
        except OutputError:
            raise
        except DeltarankError as error:
            self._fail(member.listed, error)
        member.close()

    def _add(self, listed: Listed, results: Results) -> None:
        self.rows[listed.name] = FleetFinetune.of_run(listed.name, listed.reference, results)

    def _fail(self, listed: Listed, error: DeltarankError) -> None:
        """A row with the reason; one that was measured before keeps its figures, unless its files changed."""
        before = self.folder.results_before(listed)
        if before is not None and error.slug != "run-differs":
            self._add(listed, before)
            self.notes.append(f"{listed.name} was measured before, and cannot be read any more: {error.message}")
            return
        self.rows[listed.name] = FleetFinetune.failed(listed.name, listed.reference, error.message)
        self.progress.warned(f"{listed.name} is not measured: {error.message}")


class _WarningsOf(ProgressListener):
    """Passes on what is wrong with one of the finetunes."""

    def __init__(self, name: str, progress: ProgressListener) -> None:
        self._name, self._progress = name, progress

    def warned(self, sentence: str) -> None:
        self._progress.warned(f"{self._name}: {sentence}")


def _in_words(members: Sequence[Member]) -> str:
    matrices = sum(len(member.steps) for member in members)
    of_all = f"{count(matrices, 'matrix', 'matrices')} of {count(len(members), 'finetune')}"
    return f"{of_all} to measure, while the base is read once."


def _changed(error: OutputError, run: RunFolder) -> OutputError:
    message = f"its files changed after it was measured; remove {run.folder} to measure it again"
    return OutputError(message, cure=error.cure, slug=error.slug)


def _nothing_measured(fleet: Fleet) -> JobError:
    reasons = [f"{each.name}: {each.reason}" for each in fleet.failed]
    return JobError(
        f"No finetune could be measured. {' '.join(reasons[:2])}",
        cure="Correct the list, and run the command again; fleet.json has the reason of each.",
        slug="no-finetune-measured",
    )
