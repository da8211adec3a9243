"""A measurement of outputs for two open checkpoints: its plan, and its run."""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from deltarank.checkpoints import Checkpoint
from deltarank.errors import DeltarankError, OutputError, UsageError
from deltarank.jobs.compare import CompareJob, CompareOptions, judge
from deltarank.jobs.outputs.addition import Addition
from deltarank.jobs.outputs.inputs import OutputsInputs
from deltarank.jobs.outputs.merge import with_added
from deltarank.jobs.outputs.model_pair import ModelPair, most_used_dtype
from deltarank.jobs.outputs.options import OutputsOptions
from deltarank.jobs.outputs.partial_folder import PartialFolder
from deltarank.jobs.outputs.plan import OutputsPlan
from deltarank.jobs.outputs.quick import is_quick
from deltarank.jobs.outputs.run import OutputsRun
from deltarank.results import DEFAULT_RANKS, Outputs, Results, count, listing
from deltarank.runtime import (
    RESULTS,
    PartOfJob,
    ProgressListener,
    RunFolder,
    as_output_error,
    available_memory,
    read_identity,
)
from deltarank.system import current_command, tool_version

PARTIAL = "outputs.partial"

_RESUMABLE = ("out-of-memory", "hub-lost", "hub-unreachable", "unreadable")
"""Slugs of failures after which the same command, or one with a smaller batch, may succeed."""


@dataclass(frozen=True)
class OutputsJob:
    """Two open checkpoints and the options of the measurement.

    fetch            how other checkpoints are fetched from the Hub
    given            names of the options that were chosen; None: all. The others are defaults
    addition         the finished outputs that candidates are added to
    """

    base: Checkpoint
    finetune: Checkpoint
    options: OutputsOptions
    fetch: str = "auto"
    given: frozenset[str] | None = None
    addition: Addition | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", self.options.with_dtype(most_used_dtype(self.finetune)))

    @property
    def _earlier(self) -> Outputs | None:
        return self.addition.earlier if self.addition else None

    @cached_property
    def models(self) -> ModelPair:
        return ModelPair.of(self.base, self.finetune, self.options)

    @cached_property
    def inputs(self) -> OutputsInputs:
        return OutputsInputs.read(self.models, self.options, fetch=self.fetch)

    @cached_property
    def plan(self) -> OutputsPlan:
        """Raises UsageError.

        slug "cannot-write-streamed": prompts to models that do not fit into memory; "attribute-other-layout": modules
        to attribute to, in a finetune that is not stored in the base's layout.
        """
        available = available_memory(self.options.torch_device)
        plan = OutputsPlan(self.options, self.models, self.inputs, available, earlier=self._earlier)
        if self.options.attribute and not self.models.has_one_layout:
            raise UsageError(
                "The finetune stores projections fused, split or named otherwise than the base, so --attribute cannot "
                "replace one of its modules by the base's.",
                cure="Leave out --attribute, or save the finetune in the base's layout.",
                slug="attribute-other-layout",
            )
        if plan.memory.must_stream and plan.prompt_count:
            raise UsageError(
                f"The models do not fit into memory ({plan.memory.sentence}), and a streamed model would read its "
                "whole checkpoint for each token of an answer.",
                cure="Use --samples 0 and --text FILE (answers of the finetune that a server generated make a good "
                "text), or --dtype bfloat16, or a machine with more memory.",
                slug="cannot-write-streamed",
            )
        return plan

    @property
    def identity(self) -> dict[str, Any]:
        """What must be equal for one process to resume the work of another.

        Not the size of a batch, which only changes the last digits: where memory ran out, a smaller one resumes.
        """
        settings = self.options.to_plain()
        del settings["batch"]
        return {
            "tool_version": tool_version(),
            "base": self.base.fingerprint,
            "finetune": self.finetune.fingerprint,
            "given": dict(self.inputs.fingerprints),
            "settings": settings,
            **({"added_to": self.addition.fingerprint} if self.addition else {}),
        }

    def run(self, output: Path | None, *, force: bool = False, progress: ProgressListener) -> Results:
        """Measures the outputs, and first the weights where the folder has no results of them.

        Args:
            output: the folder of the run; None: nothing is kept.
        """
        if output is None:
            with tempfile.TemporaryDirectory() as folder:
                return self.run(Path(folder), progress=progress)
        return self.for_folder(output, force=force)._run(output, force=force, progress=progress)

    def for_folder(self, folder: Path, *, force: bool) -> OutputsJob:
        """This job, or that which adds to the outputs that are in the folder."""
        if force or not self._is_compared(folder):
            return self
        earlier = Results.load(folder).outputs
        if earlier is None or self._replaces(earlier):
            return self
        given = {field.name for field in fields(OutputsOptions)} if self.given is None else self.given
        addition = Addition(earlier, self.options, given, self.fetch)
        return replace(self, options=addition.options(), addition=addition)

    def _run(self, output: Path, *, force: bool, progress: ProgressListener) -> Results:
        plan = self.plan  # what is wrong with the inputs is found before the weights are measured
        known = Results.load(output) if self._is_compared(output) else None
        if self.addition is not None:
            self._check_same(self.addition, output)
            progress.noted(self._sentence_on_addition(output))
        elif not force and known is not None and known.outputs is not None:
            progress.noted(f"{output} has the outputs of a quick measurement; they are replaced.")
        if known is not None and not plan.candidates:
            return known
        before = 0.0 if known else self._compare_job.plan.work_seconds
        progress.noted(plan.opening_line(before))
        part = PartOfJob(progress, seconds=before, after=plan.seconds)
        weights = known or self._compare_job.run(output, force=force, progress=part)
        files = PartialFolder(output / PARTIAL)
        progress.writing(output)
        part = PartOfJob(progress, before=before, seconds=plan.seconds)
        measured = self._measure(plan, files, force=force, progress=part)
        results = self._with_outputs(Results.load(output) if known else weights, measured, output)
        with as_output_error(output):
            results.save(output / RESULTS)
        files.remove()
        return results

    def _with_outputs(self, weights: Results, measured: Outputs, folder: Path) -> Results:
        """The results of the weights, with these outputs or with what they add to those that are there."""
        identity, command = self.identity, current_command()
        if self.addition is not None:
            if weights.outputs != self.addition.earlier:
                raise OutputError(
                    f"The outputs in {folder} were changed while candidates were added to them.",
                    cure="Run the same command again.",
                    slug="run-differs",
                )
            measured = with_added(self.addition.earlier, measured, self.addition.merged_options(self.options))
            identity = self.addition.merged_identity(identity)
            command = "\n".join(filter(None, (self.addition.earlier.settings.get("command"), command)))
        settings = {**measured.settings, "identity": identity, "command": command}
        outputs = replace(measured, settings=settings)
        verdict = judge(weights.matrices, weights.skipped, weights.finetune.short_name, outputs=outputs)
        return replace(weights, verdict=verdict, outputs=outputs)

    def _sentence_on_addition(self, folder: Path) -> str:
        if not self.plan.candidates:
            return f"{folder} already has the outputs of all these candidates; its results are used."
        there = count(len(self.plan.taken_names), "candidate")
        return f"{folder} has the outputs of {there}; {listing(list(self.plan.candidates), most=5)} will be added."

    def measure(self, folder: Path, *, only: Collection[str] | None = None, progress: ProgressListener) -> Outputs:
        """The outputs alone, without the weights. What an earlier process stored in the folder is used again.

        Args:
            only: names of the candidates that are measured, the base among them; the same for one folder. None: all.
        """
        plan = replace(self.plan, only=only)
        return self._measure(plan, PartialFolder(folder), force=False, progress=progress)

    @cached_property
    def _compare_job(self) -> CompareJob:
        """Measures the weights."""
        ranks = tuple({*DEFAULT_RANKS, *self.options.ranks})
        return CompareJob(self.base, self.finetune, CompareOptions(ranks=ranks, device=self.options.device))

    def check_output(self, output: Path, *, force: bool = False) -> None:
        """Raises OutputError if `run` could not write there; of the job that `for_folder` returns."""
        if not self._is_compared(output):
            self._compare_job.check_output(output, force=force)
            return
        if self.addition is not None:
            self._check_same(self.addition, output)
        if self.plan.candidates:
            self._check_partial(PartialFolder(output / PARTIAL), force=force)

    def _check_partial(self, files: PartialFolder, *, force: bool) -> None:
        """Raises OutputError if the work cannot be stored there, or other work is."""
        replaces = force or self._replaces_unfinished(files)
        try:
            RunFolder(files.path, self.identity).check(force=replaces, needed_bytes=self.plan.disk_bytes)
        except OutputError as error:
            if self.addition is None or error.slug != "run-differs":
                raise
            raise OutputError(
                error.message,
                cure=f"Repeat the command that was interrupted to finish it, or delete {files.path}.",
                slug=error.slug,
            ) from None

    def _is_compared(self, folder: Path) -> bool:
        """Whether the folder has a finished run of this pair, with whatever options."""
        identity = read_identity(folder)
        fingerprints = {"base": self.base.fingerprint, "finetune": self.finetune.fingerprint}
        is_same = isinstance(identity, dict) and fingerprints.items() <= identity.items()
        return is_same and (folder / RESULTS).is_file()

    def _replaces(self, earlier: Outputs) -> bool:
        """Whether these outputs are a first answer, which a whole measurement replaces."""
        return is_quick(earlier) and not self.options.quick

    def _replaces_unfinished(self, files: PartialFolder) -> bool:
        """The same for a quick measurement that was interrupted."""
        identity = read_identity(files.path)
        settings = identity.get("settings") if isinstance(identity, dict) else None
        return isinstance(settings, dict) and bool(settings.get("quick")) and not self.options.quick

    def _check_same(self, addition: Addition, folder: Path) -> None:
        if changed := addition.differences(self.identity, self.inputs):
            raise OutputError(
                f"{folder} already contains outputs that new ones cannot be compared with: {listing(changed)}.",
                cure="Leave these options out to add candidates with those of that run. Or choose another folder with "
                "-o, or use --force to measure all again. The results for the weights are kept.",
                slug="run-differs",
            )

    def _measure(self, plan: OutputsPlan, files: PartialFolder, *, force: bool, progress: ProgressListener) -> Outputs:
        if force or self._replaces_unfinished(files):
            files.remove()
        self._check_partial(files, force=force)
        try:
            with RunFolder(files.path, self.identity) as folder:
                records = folder.open(force=force, needed_bytes=plan.disk_bytes)
                if records:
                    progress.resumed(len(records))
                return OutputsRun(plan, folder, files, records, self.fetch, progress).outputs()
        except DeltarankError as error:
            is_resumable = isinstance(error, OutputError) or error.slug in _RESUMABLE or files.has_scores
            if not is_resumable:
                files.remove()
            raise
