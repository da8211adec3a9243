"""One process that measures a fleet: finetunes are opened, pass over the base, and become rows."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from deltarank.errors import DeltarankError, OutputError
from deltarank.jobs.compare import CompareJob
from deltarank.jobs.fleet.base_pass import BasePass
from deltarank.jobs.fleet.extraction import Extraction
from deltarank.jobs.fleet.finetunes import Listed
from deltarank.jobs.fleet.folder import FleetFolder
from deltarank.jobs.fleet.member import Member
from deltarank.jobs.fleet.plan import MOST_HEADER_BYTES
from deltarank.results import Fleet, FleetFinetune, count
from deltarank.runtime import PartOfJob, ProgressListener, run_provenance, utc_timestamp
from deltarank.system import tool_version

if TYPE_CHECKING:
    from deltarank.jobs.fleet.job import FleetJob


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
        try:
            for number, each in enumerate(listed):
                self.progress.stage(f"the headers of {each.name}")
                self._begin(each)
                if self._is_full():
                    self._pass(left=len(listed) - number - 1)
            self._pass()
        finally:
            for member in self.waiting:
                member.close()
        read = {"base_bytes": self.job.base_bytes, "base_bytes_read": self.job.shared.bytes_read}
        return Fleet(
            base=self.job.base.reference,
            settings={**self.job.options.to_plain(), **run_provenance(time.perf_counter() - started, **read)},
            finetunes=tuple(self.rows[each.name] for each in listed),
            tool_version=tool_version(),
            created=utc_timestamp(),
            notes=tuple(self.notes),
        )

    def _begin(self, listed: Listed) -> None:
        """Opens a finetune. One that cannot be measured, or was, is a row at once."""
        try:
            job = self.job.open(listed, self.progress)
        except OutputError:
            raise
        except DeltarankError as error:
            self._fail(listed, error.message)
            return
        member = Member(listed, job, self.folder.run_of(listed, job))
        self.waiting.append(member)
        try:
            self._resume(member)
        except OutputError as error:
            if error.slug != "run-differs":
                raise
            self._fail_changed(member)
        if member.is_done:
            self._finish(member)

    def _resume(self, member: Member) -> None:
        """Takes what an earlier process finished."""
        member.results = None if self.folder.force else member.folder.finished
        if member.results is None:
            member.resume(force=self.folder.force)
        member.extraction = self._extraction(member.listed, member.job)

    def _extraction(self, listed: Listed, job: CompareJob) -> Extraction | None:
        """None if no adapters are asked for, or a server can load none of this finetune."""
        options = self.job.options.of_adapters()
        if options is None:
            return None
        output = self.folder.path / listed.name / f"adapter-r{options.rank}-{options.server}"
        try:
            return Extraction(listed.name, (job.base, job.finetune), options, output, force=self.folder.force)
        except OutputError:
            raise
        except DeltarankError as error:
            self._without_adapter(listed, error)
            return None

    def _without_adapter(self, listed: Listed, error: DeltarankError) -> None:
        sentence = f"{listed.name} has no adapter: {error.message}"
        self.notes.append(sentence)
        self.progress.warned(sentence)

    def _is_full(self) -> bool:
        """Whether the headers of the open finetunes take the memory that is set aside for them."""
        open_ones = [member.header_bytes for member in self.waiting]
        return sum(open_ones) + max(open_ones, default=0) > MOST_HEADER_BYTES

    def _pass(self, *, left: int = 0) -> None:
        """Measures the finetunes that wait. `left`: how many will follow, of whose time nothing is known."""
        if not self.waiting:
            return
        needed = [member.needed_bytes for member in self.waiting]
        self.folder.check_disk_space(sum(needed) + max(needed))
        done = sum(len(member.finished) for member in self.waiting)
        if done:
            self.progress.resumed(done)
        self.progress.noted(_in_words(self.waiting))
        base_pass = BasePass(self.waiting, self.job.shared, self.job.options)
        seconds = base_pass.seconds
        after = left * seconds / len(self.waiting)
        base_pass.run(PartOfJob(self.progress, before=self.seconds, seconds=seconds, after=after))
        self.seconds += seconds
        for member in list(self.waiting):
            self._finish(member)

    def _finish(self, member: Member) -> None:
        """Its row, and its adapter. Closes it."""
        listed = member.listed
        progress = _WarningsOf(listed.name, self.progress)
        self.progress.stage(f"the verdict of {listed.name}")
        try:
            results = member.finish(progress)
            adapter = self._adapter(member, progress)
            self.rows[listed.name] = FleetFinetune.of_run(listed.name, listed.reference, results, adapter=adapter)
        except OutputError:
            raise
        except DeltarankError as error:
            self._fail(listed, error.message)
        self._close(member)

    def _adapter(self, member: Member, progress: ProgressListener) -> str | None:
        """The folder of its adapter, relative to the fleet's; None if it has none."""
        if member.extraction is None:
            return None
        try:
            member.extraction.finish(progress)
        except OutputError:
            raise
        except DeltarankError as error:
            self._without_adapter(member.listed, error)
            return None
        return member.extraction.output.relative_to(self.folder.path).as_posix()

    def _close(self, member: Member) -> None:
        member.close()
        self.waiting.remove(member)

    def _fail_changed(self, member: Member) -> None:
        reason = f"its files changed after it was measured; remove {member.folder.folder} to measure it again"
        self._add_failed(member.listed, reason)
        self._close(member)

    def _fail(self, listed: Listed, reason: str) -> None:
        """A row with the reason; one that was measured before keeps its figures."""
        before = self.folder.results_before(listed)
        if before is None:
            self._add_failed(listed, reason)
            return
        self.rows[listed.name] = FleetFinetune.of_run(listed.name, listed.reference, before)
        self.notes.append(f"{listed.name} was measured before, and cannot be read any more: {reason}")

    def _add_failed(self, listed: Listed, reason: str) -> None:
        self.rows[listed.name] = FleetFinetune.failed(listed.name, listed.reference, reason)
        self.progress.warned(f"{listed.name} is not measured: {reason}")


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
