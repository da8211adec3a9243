"""The pass that makes an adapter."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from deltarank.adapters import BUDGET_PICTURE_FILE, METADATA_FILE, MODEL_CARD_FILE
from deltarank.checkpoints import SummedTensor
from deltarank.errors import CheckpointError, DeltarankError, JobError
from deltarank.jobs.compare import UNRELATED
from deltarank.jobs.extract.assemble import Finished, write_adapter
from deltarank.jobs.extract.biases import bias_loss
from deltarank.jobs.extract.factorise import Extractor
from deltarank.jobs.extract.job import Job
from deltarank.jobs.extract.layout import Layout
from deltarank.jobs.extract.model_card import model_card
from deltarank.jobs.extract.result import AdapterMatrix, ExtractedAdapter, SummedEnergy
from deltarank.jobs.extract.staging import Staging
from deltarank.results import Outcome, listing, percent, read_records, to_plain
from deltarank.runtime import (
    READ_RATE,
    RETRIED_OUTCOMES,
    DeltaReader,
    ProgressListener,
    TimeEstimate,
    estimate_time,
    matrix_pass,
    planned_seconds,
    run_provenance,
)
from deltarank.system import tool_version

Draw = Callable[[Mapping[str, Any]], bytes]
"""Makes a PNG of what an adapter says about itself, the contents of its deltarank.json."""


@dataclass
class Run:
    """One pass over a plan. Factors go from the extractors to disk; here are numbers only.

    draw     makes the card's picture; None: the card draws in text
    """

    job: Job
    layout: Layout
    staging: Staging
    progress: ProgressListener
    draw: Draw | None = None
    matrices: dict[str, AdapterMatrix] = field(default_factory=dict)
    energies: dict[str, float | None] = field(default_factory=dict)
    rounded: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.plan = self.job.plan(self.layout)
        self._targets = {target.pair.name: target for target in self.layout.targets}
        self._numbers = {name: number for number, name in enumerate(self._targets)}

    def resume(self, records: Sequence[Any]) -> None:
        """What an earlier process finished, as far as its files are there; a line that is not ours is passed over."""
        for summed in read_records(SummedEnergy, records, "energy_of"):
            self.energies[summed.energy_of], self.rounded[summed.energy_of] = summed.energy, summed.rounded
        for matrix in read_records(AdapterMatrix, records, "path"):
            if matrix.outcome is not Outcome.MEASURED or self._is_kept(matrix.name):
                self.matrices[matrix.name] = matrix
        if self.matrices or self.energies:
            self.progress.resumed(len(self.matrices) + len(self.energies))

    def _is_kept(self, name: str) -> bool:
        target, path = self._targets[name], self._place(name)
        return path.is_file() and path.stat().st_size == sum(target.sides) * target.rank * self.job.dtype.itemsize

    def _place(self, name: str) -> Path:
        return self.staging.factors(self._numbers[name])

    def go(self) -> ExtractedAdapter:
        started = time.perf_counter()
        self.progress.planned(self.plan)
        finished_before = self.matrices.keys() | self.energies.keys()
        checkpoints = (self.job.before, self.job.after)
        estimate = estimate_time(self.plan, finished_before, checkpoints, self.progress)
        self._extract_all(estimate)
        self._sum_up_all(estimate)
        finished = Finished(self.layout, self.matrices, self.energies, self.rounded, self.job.dtype)
        self._judge(finished)
        adapter = self._adapter(finished, time.perf_counter() - started)
        picture = self._drawn(adapter)
        adapter = replace(adapter, notes=(*self.plan.notes, *self.warnings))
        with self.staging.whole() as folder:
            write_adapter(folder, finished, self.staging, self.job.before, self.job.after, self._numbers)
            (folder / METADATA_FILE).write_text(adapter.to_json(), encoding="utf-8")
            (folder / MODEL_CARD_FILE).write_text(model_card(adapter, picture=picture is not None), encoding="utf-8")
            if picture is not None:
                (folder / BUDGET_PICTURE_FILE).write_bytes(picture)
        return adapter

    def _extract_all(self, estimate: TimeEstimate) -> None:
        waiting = [step for step in self.plan.steps if step.pair.name not in self.matrices]
        for matrix in matrix_pass(
            [[step] for step in waiting],
            self._extractor,
            seconds=planned_seconds,
            workers=self.plan.parallel_matrices,
            progress=self.progress,
            estimate=estimate,
        ):
            self.matrices[matrix.name] = matrix
            if matrix.outcome not in RETRIED_OUTCOMES:
                self.staging.keep(to_plain(matrix))

    def _extractor(self) -> Extractor:
        return Extractor(self.plan.options, self._targets, self.job.dtype, self._place)

    def _sum_up_all(self, estimate: TimeEstimate) -> None:
        reader = DeltaReader(self.plan.options)
        beside = {other.name for other in self.layout.unfactored if other.beside}
        for other in self.plan.pairing.summed:
            if other.name in self.energies:
                continue
            self.progress.began(other.name)
            try:
                self._sum_up(other, reader, is_bias=other.name in beside)
            except CheckpointError:
                self.energies[other.name] = None
            estimate.add(other.name, other.nbytes / READ_RATE)

    def _sum_up(self, other: SummedTensor, reader: DeltaReader, *, is_bias: bool) -> None:
        sums = reader.sums(other)
        summed = SummedEnergy(other.name, sums.energy if sums.is_finite else None)
        if is_bias and sums.is_finite:
            loss = bias_loss(other, self.job.dtype)
            summed = SummedEnergy(other.name, loss.energy, loss.lost)
        self.energies[other.name], self.rounded[other.name] = summed.energy, summed.rounded
        self.staging.keep(to_plain(summed))

    def _judge(self, finished: Finished) -> None:
        """Raises JobError if nothing could be extracted; warns of what should be known."""
        written = [m for m in self.matrices.values() if m.written is not None]
        failed = [m for m in self.matrices.values() if m.written is None]
        if not written:
            raise JobError(
                f"none of {len(failed)} matrices could be extracted; {failed[0].name}: {failed[0].reason}.",
                cure="Run `deltarank compare` on the two: it says what is wrong with each.",
                slug="nothing-to-extract",
            )
        if failed:
            names = listing([f"{m.name} ({m.reason})" for m in failed], most=3)
            self._warn(f"left as in the base, since they could not be extracted: {names}")
        energy, base = (math.fsum(values) for values in zip(*((m.energy, m.base_energy) for m in written), strict=True))
        if base > 0 and math.sqrt(energy / base) >= UNRELATED:
            self._warn(
                f"the delta has {percent(math.sqrt(energy / base))} of the base's own size: is this the base that the "
                "finetune was trained from?"
            )
        self._warn_of_the_server(finished)

    def _warn_of_the_server(self, finished: Finished) -> None:
        for note in self.layout.notes:
            self._warn(note)
        above = self.layout.server.rank_warning
        if above is not None and self.layout.rank > above[0]:
            self._warn(above[1])
        if self.layout.empties:
            self._warn(
                f"{self.layout.server.title} wants every layer of a module: layers that were left out get zeros, which "
                "change nothing"
            )
        without = [t.module for t in finished.factored if t.module not in finished.biases]
        if finished.biases and any(not self._has_bias(module) for module in without):
            self._warn(
                "PEFT cannot merge this adapter (merge_and_unload), since it carries biases and not every module has "
                "one; --exclude '*.bias' leaves them out"
            )
        grown = [o.name for o in self.layout.unfactored if o.kind == "added tokens"]
        if grown and any(o.kind in ("embedding", "lm_head") for o in finished.carried):
            self._warn("the vocabulary was resized: resize the base's (resize_token_embeddings) before loading")

    def _has_bias(self, module: str) -> bool:
        return f"{module}.bias" in self.job.before.tensors

    def _warn(self, sentence: str) -> None:
        self.warnings.append(sentence)
        self.progress.warned(sentence)

    def _adapter(self, finished: Finished, seconds: float) -> ExtractedAdapter:
        options = self.job.options
        return ExtractedAdapter(
            folder=self.staging.output,
            base=self.plan.base,
            finetune=self.plan.finetune,
            rank=self.layout.rank,
            server=options.server.name,
            dtype=str(self.job.dtype).removeprefix("torch."),
            matrices=tuple(self.matrices[name] for name in self._targets),
            budget=finished.budget(),
            settings={**options.to_plain(), **run_provenance(seconds, fingerprints=self._fingerprints())},
            notes=(*self.plan.notes, *self.warnings),
            tool_version=tool_version(),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            identity=self.staging.identity,
        )

    def _drawn(self, adapter: ExtractedAdapter) -> bytes | None:
        if self.draw is None:
            return None
        try:
            return self.draw(adapter.to_plain())
        except Exception as error:  # whoever draws, and whatever fails there, takes no hours' work with it
            reason = error.message if isinstance(error, DeltarankError) else f"{type(error).__name__}: {error}"
            self._warn(f"the card has no picture: {reason}"[:300])
            return None

    def _fingerprints(self) -> dict[str, str]:
        return {"base": self.job.before.fingerprint, "finetune": self.job.after.fingerprint}
