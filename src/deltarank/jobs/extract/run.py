"""One pass over the matrices of an extraction, and the adapter that comes of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from deltarank.adapters import BUDGET_PICTURE_FILE, METADATA_FILE, MODEL_CARD_FILE
from deltarank.checkpoints import Checkpoint, SummedTensor
from deltarank.errors import CheckpointError, DeltarankError, JobError
from deltarank.jobs.extract.adapter_warnings import adapter_warnings
from deltarank.jobs.extract.assemble import AdapterWriter
from deltarank.jobs.extract.biases import bias_energy
from deltarank.jobs.extract.contents import AdapterContents
from deltarank.jobs.extract.factorise import MatrixFactoriser
from deltarank.jobs.extract.load_check import check_written
from deltarank.jobs.extract.model_card import render_model_card
from deltarank.jobs.extract.module_names import ModuleNames
from deltarank.jobs.extract.options import FACTOR_DTYPES
from deltarank.jobs.extract.plan import ExtractionPlan
from deltarank.jobs.extract.result import AdapterMatrix, ExtractedAdapter, SummedEnergy
from deltarank.jobs.extract.staging import StagingFolder
from deltarank.results import Outcome, read_records, to_plain
from deltarank.runtime import (
    READ_RATE,
    DeltaReader,
    ProgressListener,
    Record,
    Step,
    TimeEstimate,
    estimate_time,
    matrix_pass,
    planned_seconds,
    run_provenance,
    utc_timestamp,
)
from deltarank.system import tool_version

DrawBudget = Callable[[Mapping[str, Any]], bytes]
"""Draws a PNG from the contents of a deltarank.json."""


@dataclass
class ExtractRun:
    """One pass over a plan. What the workers find is written at once.

    matrices  the results of the targets so far, by tensor name
    sums      the energies of the other tensors so far, by tensor name

    `factors_path` is the file for the factors of a target, by tensor name.
    """

    plan: ExtractionPlan
    names: ModuleNames
    finetune: Checkpoint
    staging: StagingFolder
    progress: ProgressListener
    draw: DrawBudget | None = None
    matrices: dict[str, AdapterMatrix] = field(default_factory=dict)
    sums: dict[str, SummedEnergy] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._dtype = FACTOR_DTYPES[self.plan.dtype]
        self._targets = {target.pair.name: target for target in self.plan.layout.targets}
        self.factors_path = self.staging.factors_paths(self._targets)

    @property
    def base(self) -> Checkpoint:
        return self.names.base

    def resume(self, records: Iterable[Record]) -> None:
        """Takes what an earlier process finished. What cannot be read, or has lost its factors, is done again."""
        records = list(records)
        for summed in read_records(SummedEnergy, records, "energy_of"):
            self.sums[summed.energy_of] = summed
        for matrix in read_records(AdapterMatrix, records, "path"):
            if matrix.name not in self._targets:
                continue
            if matrix.outcome is not Outcome.MEASURED or self._has_factors(matrix.name):
                self.matrices[matrix.name] = matrix
        if finished := len(self.matrices) + len(self.sums):
            self.progress.resumed(finished)

    def _has_factors(self, name: str) -> bool:
        target, path = self._targets[name], self.factors_path(name)
        size = sum(target.linear_shape) * target.rank * self._dtype.itemsize
        return path.is_file() and path.stat().st_size == size

    def adapter(self) -> ExtractedAdapter:
        """Extracts what is left, and writes the adapter.

        Raises:
            JobError: (slug "nothing-to-extract") no matrix could be extracted; (slug "adapter-does-not-load") PEFT
                does not load the adapter, though its server is PEFT.
            OutputError: something cannot be written.
        """
        started = time.perf_counter()
        work = self.plan.work
        self.progress.planned(work)
        finished = self.matrices.keys() | self.sums.keys()
        estimate = estimate_time(work, finished, (self.base, self.finetune), self.progress)
        self._factor_all(estimate)
        self._sum_all(estimate)
        self.progress.stage("the adapter and its model card")
        contents = AdapterContents(self.plan.layout, self.matrices, self.sums)
        self._check_anything_was_extracted()
        for warning in adapter_warnings(contents, self.base.tensors.keys()):
            self._warn(warning)
        adapter = self._description(contents, started)
        writer = AdapterWriter(contents, self.names, self.finetune, self._dtype, self.factors_path)
        with self.staging.whole() as folder:
            writer.write(folder)
            check = check_written(folder, self.names.architecture, self.plan.layout.server)
            adapter = replace(adapter, load_check=check)
            picture = self._picture(adapter)
            adapter = replace(adapter, notes=self._notes)
            (folder / METADATA_FILE).write_text(adapter.to_json(), encoding="utf-8")
            (folder / MODEL_CARD_FILE).write_text(
                render_model_card(adapter, picture=picture is not None), encoding="utf-8"
            )
            if picture is not None:
                (folder / BUDGET_PICTURE_FILE).write_bytes(picture)
        return adapter

    @property
    def waiting(self) -> list[Step]:
        """The matrices that have no factors yet."""
        return [step for step in self.plan.work.steps if step.pair.name not in self.matrices]

    def make_factoriser(self, steps: Iterable[Step]) -> Callable[..., MatrixFactoriser]:
        """Makes a worker for these matrices, without a reference to this run. Takes `buffers`."""
        targets = {step.pair.name: self._targets[step.pair.name] for step in steps}
        return partial(MatrixFactoriser, self.plan.work.options, targets, self._dtype)

    def _factor_all(self, estimate: TimeEstimate) -> None:
        work = self.plan.work
        results = matrix_pass(
            [[step] for step in self.waiting],
            self.make_factoriser(self.waiting),
            seconds=planned_seconds,
            workers=work.parallel_matrices,
            device=work.options.torch_device,
            progress=self.progress,
            estimate=estimate,
        )
        with closing(results):
            for found in results:
                found.write(self.factors_path(found.matrix.name))
                self.matrices[found.matrix.name] = found.matrix
                self.staging.keep(found.matrix)

    def _sum_all(self, estimate: TimeEstimate) -> None:
        reader = DeltaReader(self.plan.work.options)
        biases = {tensor.name for tensor in self.plan.layout.unfactored if tensor.bias_of}
        for tensor in self.plan.work.pairing.summed:
            if tensor.name in self.sums:
                continue
            self.progress.began(tensor.name)
            try:
                self.sums[tensor.name] = self._summed(tensor, reader, is_bias=tensor.name in biases)
                self.staging.append(to_plain(self.sums[tensor.name]))
            except CheckpointError:  # its energy is not known; a resumed run tries again
                self.sums[tensor.name] = SummedEnergy(tensor.name, None)
            estimate.add(tensor.name, tensor.nbytes / READ_RATE)

    def _summed(self, tensor: SummedTensor, reader: DeltaReader, *, is_bias: bool) -> SummedEnergy:
        sums = reader.sums(tensor)
        if not sums.is_finite:
            return SummedEnergy(tensor.name, None)
        return bias_energy(tensor, self._dtype) if is_bias else SummedEnergy(tensor.name, sums.energy)

    def _check_anything_was_extracted(self) -> None:
        matrices = list(self.matrices.values())
        if all(matrix.written is None for matrix in matrices):
            raise JobError(
                f"None of {len(matrices)} matrices could be extracted; {matrices[0].name}: {matrices[0].reason}.",
                cure="Run `deltarank compare` on the same checkpoints: it reports what is wrong with each matrix.",
                slug="nothing-to-extract",
            )

    def _warn(self, sentence: str) -> None:
        self.warnings.append(sentence)
        self.progress.warned(sentence)

    @property
    def _notes(self) -> tuple[str, ...]:
        return (*self.plan.work.notes, *self.warnings)

    def _description(self, contents: AdapterContents, started: float) -> ExtractedAdapter:
        plan = self.plan
        fingerprints = {"base": self.base.fingerprint, "finetune": self.finetune.fingerprint}
        provenance = run_provenance(time.perf_counter() - started, fingerprints=fingerprints)
        return ExtractedAdapter(
            folder=self.staging.output,
            base=plan.work.base,
            finetune=plan.work.finetune,
            rank=plan.layout.rank,
            server=plan.options.server,
            dtype=plan.dtype,
            matrices=tuple(self.matrices[name] for name in self._targets),
            budget=contents.budget(plan.work.pairing.unpaired(contents.failed)),
            settings={**plan.options.to_plain(), **provenance},
            notes=self._notes,
            tool_version=tool_version(),
            created=utc_timestamp(),
            identity=self.staging.identity,
        )

    def _picture(self, adapter: ExtractedAdapter) -> bytes | None:
        if self.draw is None:
            return None
        try:
            return self.draw(adapter.to_plain())
        except Exception as error:  # a picture that fails must not cost hours of work
            reason = error.message if isinstance(error, DeltarankError) else f"{type(error).__name__}: {error}"
            self._warn(f"the model card has no picture: {reason}"[:300])
            return None
