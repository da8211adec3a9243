"""The pass that makes an adapter."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from deltarank.adapters import BUDGET_PICTURE_FILE, METADATA_FILE, MODEL_CARD_FILE
from deltarank.checkpoints import Pair, SummedTensor
from deltarank.errors import CheckpointError, DeltarankError, JobError
from deltarank.jobs.compare import UNRELATED, MatrixMeasurer
from deltarank.jobs.extract.assemble import Finished, write_adapter
from deltarank.jobs.extract.biases import bias_loss
from deltarank.jobs.extract.factorise import Extractor
from deltarank.jobs.extract.job import Job
from deltarank.jobs.extract.layout import Layout
from deltarank.jobs.extract.model_card import model_card
from deltarank.jobs.extract.result import AdapterMatrix, ExtractedAdapter
from deltarank.jobs.extract.staging import Staging
from deltarank.results import Outcome, listing, percent
from deltarank.runtime import READ_RATE, ProgressListener, Throughput, WorkerPool

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
        for record in records:
            with suppress(KeyError, TypeError, ValueError, AttributeError):
                self._take(record)
        if self.matrices or self.energies:
            self.progress.resumed(len(self.matrices) + len(self.energies))

    def _take(self, record: Mapping[str, Any]) -> None:
        if "energy_of" in record:
            energy = record["energy"]
            rounded = float(record.get("rounded", 0.0))
            self.energies[record["energy_of"]] = None if energy is None else float(energy)
            self.rounded[record["energy_of"]] = rounded
            return
        matrix = AdapterMatrix.from_plain(record)
        if matrix.outcome is not Outcome.MEASURED or self._is_kept(matrix.name):
            self.matrices[matrix.name] = matrix

    def _is_kept(self, name: str) -> bool:
        target, path = self._targets[name], self._place(name)
        return path.is_file() and path.stat().st_size == sum(target.sides) * target.rank * self.job.dtype.itemsize

    def _place(self, name: str) -> Path:
        return self.staging.factors(self._numbers[name])

    def go(self, command: str | None) -> ExtractedAdapter:
        started = time.perf_counter()
        self.progress.planned(self.plan)
        clock = _Clock(self)
        self._extract_all(clock)
        self._sum_up_all(clock)
        finished = Finished(self.layout, self.matrices, self.energies, self.rounded, self.job.dtype)
        self._judge(finished)
        adapter = self._adapter(finished, command, time.perf_counter() - started)
        picture = self._drawn(adapter)
        adapter = replace(adapter, notes=(*self.plan.notes, *self.warnings))
        with self.staging.whole() as folder:
            write_adapter(folder, finished, self.staging, self.job.before, self.job.after, self._numbers)
            (folder / METADATA_FILE).write_text(adapter.to_json(), encoding="utf-8")
            (folder / MODEL_CARD_FILE).write_text(model_card(adapter, picture=picture is not None), encoding="utf-8")
            if picture is not None:
                (folder / BUDGET_PICTURE_FILE).write_bytes(picture)
        return adapter

    def _extract_all(self, clock: _Clock) -> None:
        waiting = [step for step in self.plan.steps if step.pair.name not in self.matrices]
        if waiting:
            self.progress.began(waiting[0].pair.name)
        pool = WorkerPool(self._extractor, self.plan.parallel_matrices)
        for number, (_, matrix) in enumerate(pool.results([[step] for step in waiting]), start=1):
            self.matrices[matrix.name] = matrix
            # What failed for want of memory or a disk may work next time.
            if matrix.outcome not in (Outcome.FAILED, Outcome.UNREADABLE):
                self.staging.keep(matrix.to_plain())
            clock.tick(matrix.name)
            if number < len(waiting):
                self.progress.began(waiting[number].pair.name)

    def _extractor(self) -> Extractor:
        return Extractor(self.plan.settings, self._targets, self.job.dtype, self._place)

    def _sum_up_all(self, clock: _Clock) -> None:
        measurer = MatrixMeasurer(self.plan.settings)
        beside = {other.name for other in self.layout.unfactored if other.beside}
        for other in self.plan.pairing.summed:
            if other.name in self.energies:
                continue
            self.progress.began(other.name)
            try:
                self._sum_up(other, measurer, is_bias=other.name in beside)
            except CheckpointError:
                self.energies[other.name] = None
            clock.tick(other.name)

    def _sum_up(self, other: SummedTensor, measurer: MatrixMeasurer, *, is_bias: bool) -> None:
        sums = measurer.sums(other)
        record: dict[str, Any] = {
            "energy_of": other.name,
            "energy": sums.energy if sums.is_finite else None,
        }
        if is_bias and sums.is_finite:
            loss = bias_loss(other, self.job.dtype)
            record |= {"energy": loss.energy, "rounded": loss.lost}
        self.energies[other.name], self.rounded[other.name] = (
            record["energy"],
            record.get("rounded", 0.0),
        )
        self.staging.keep(record)

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

    def _adapter(self, finished: Finished, command: str | None, seconds: float) -> ExtractedAdapter:
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
            settings={**options.to_plain(), **self._surroundings(), "seconds": round(seconds, 1), "command": command},
            notes=(*self.plan.notes, *self.warnings),
            tool_version=version("deltarank"),
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

    def _surroundings(self) -> dict[str, Any]:
        prints = {"base": self.job.before.fingerprint, "finetune": self.job.after.fingerprint}
        return {"threads": torch.get_num_threads(), "torch": str(torch.__version__), "fingerprints": prints}


class _Clock:
    """Foretells the time left from the plan's costs and the time that those done have taken."""

    def __init__(self, run: Run) -> None:
        costs = {s.pair.name: s.seconds + s.pair.nbytes / READ_RATE for s in run.plan.steps}
        costs |= {x.name: x.nbytes / READ_RATE for x in run.plan.pairing.summed}
        done = run.matrices.keys() | run.energies.keys()
        waiting: list[Pair | SummedTensor] = [*(step.pair for step in run.plan.steps), *run.plan.pairing.summed]
        checkpoints = (run.job.before, run.job.after)
        self._meter = Throughput(checkpoints, [each for each in waiting if each.name not in done], run.progress)
        self._progress = run.progress
        self._costs = costs
        self._whole = math.fsum(costs.values())
        self._before = math.fsum(cost for name, cost in costs.items() if name in done)
        self._since = 0.0
        self._started = time.perf_counter()

    def tick(self, name: str) -> None:
        self._since += self._costs[name]
        self._meter.tick()
        done = self._before + self._since
        pace = (time.perf_counter() - self._started) / self._since if self._since > 0 else 0.0
        share = min(done / self._whole, 1.0) if self._whole > 0 else 1.0
        self._progress.finished(name, max(self._whole - done, 0.0) * pace, share)
