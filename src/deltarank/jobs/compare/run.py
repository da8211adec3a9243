"""The main job: two checkpoints in, what a LoRA of each rank would lose out."""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from deltarank.adapters import open_finetune
from deltarank.checkpoints import (
    Checkpoint,
    Pair,
    Prefetcher,
    SummedTensor,
    check_fetch_mode,
    open_checkpoint,
    pair_checkpoints,
)
from deltarank.errors import CheckpointError
from deltarank.jobs.compare.measure import MatrixMeasurer, stacks
from deltarank.jobs.compare.quantised_base import words_on_base
from deltarank.jobs.compare.spectrum_detail import SpectrumDetail
from deltarank.jobs.compare.verdict import UNRELATED, judge
from deltarank.results import (
    DEFAULT_RANKS,
    AuditRow,
    MatrixResult,
    Outcome,
    Results,
    Skipped,
    matrix_from_plain,
    matrix_to_plain,
    percent,
    skipped_from_plain,
    skipped_to_plain,
)
from deltarank.runtime import (
    READ_RATE,
    Clock,
    Plan,
    ProgressListener,
    Record,
    RunFolder,
    SolverOptions,
    WorkerPool,
    make_plan,
)

__all__ = ["Plan", "ProgressListener", "compare", "open_results", "plan"]

Ref = str | os.PathLike[str]

PROBES = 3
MOST_PROBED = 0.02
"""Of the bytes of a streamed run, which probing may ask for once more."""

BYTES_A_PAGE = 6_000_000


def compare(
    base: Ref,
    finetune: Ref,
    *,
    ranks: Sequence[int] = DEFAULT_RANKS,
    output: Ref | None = None,
    base_revision: str | None = None,
    revision: str | None = None,
    fetch: str = "auto",
    solver: str = "auto",
    tolerance: float = 1e-4,
    dtype: str = "float32",
    device: str = "cpu",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    audit: int = 0,
    force: bool = False,
    command: str | None = None,
    progress: ProgressListener | None = None,
) -> Results:
    """Measures D = W - W0 of every matrix, and what its best rank-r approximation loses, at all `ranks` in one pass.

    Args:
        base, finetune: a folder, a file of weights, or a Hub id, `org/name` or `org/name@revision`. The finetune may
            be a LoRA of PEFT on the base.
        output: a folder that gets results.json, and takes finished matrices on the way: the same call goes on after a
            process that died, and ends with the same numbers. Without it nothing is written.
        fetch: what becomes of a model that is not in the Hub's cache: "download", "stream" (read by byte ranges, not
            kept), or "auto", as the free disk allows. The numbers are the same.
        solver: "exact" (all singular values), "krylov" (the leading ones, to `tolerance`), or "auto", the faster.
        tolerance: how far a cosine distance may be off with krylov.
        dtype: the precision of the computation; operands are upcast to it before they are subtracted.
        include, exclude: globs over tensor names. What matches `include` is measured whatever it is; exclude wins.
        audit: so many matrices, drawn by chance, are measured again in float64 by a full SVD.
        force: replaces another run in `output`.
        progress: is told how it goes.

    Raises:
        UsageError: an argument cannot be meant.
        CheckpointError, PairingError: see `deltarank.errors`.
        OutputError: `output` holds something else, or cannot be written.
    """
    settings = SolverOptions.checked(
        ranks=ranks,
        solver=solver,
        tolerance=tolerance,
        dtype=dtype,
        device=device,
        include=include,
        exclude=exclude,
    )
    progress = progress or ProgressListener()
    with ExitStack() as stack:
        before = stack.enter_context(open_checkpoint(base, revision=base_revision, fetch=fetch, on_note=progress.noted))
        after = stack.enter_context(
            open_finetune(finetune, before, revision=revision, fetch=fetch, on_note=progress.noted)
        )
        known = make_plan(before, after, _paired(before, after, settings), settings)
        identity = _identity(before, after, settings)
        run_folder = stack.enter_context(RunFolder(Path(output), identity)) if output is not None else None
        run = _Run(
            known, MatrixMeasurer(settings, matrices=len(known.steps)), progress, run_folder, audit, (before, after)
        )
        if run_folder is not None:
            if not force and (earlier := run_folder.finished) is not None:
                run.progress.resumed(len(earlier.matrices))
                return earlier
            detail = SpectrumDetail.of_run(len(known.steps), settings.ranks)
            run.resume(run_folder.open(force=force, room=detail.nbytes * len(known.steps) + BYTES_A_PAGE))
        results = run.go(command)
        if run_folder is not None:
            run_folder.finish(results)
        return results


def plan(
    base: Ref,
    finetune: Ref,
    *,
    ranks: Sequence[int] = DEFAULT_RANKS,
    base_revision: str | None = None,
    revision: str | None = None,
    solver: str = "auto",
    tolerance: float = 1e-4,
    dtype: str = "float32",
    device: str = "cpu",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    audit: int = 0,
    fetch: str = "auto",
) -> Plan:
    """What `compare` would do, from the headers alone: no tensor is read, and none is downloaded.

    Arguments and errors as there.
    """
    settings = SolverOptions.checked(
        ranks=ranks,
        solver=solver,
        tolerance=tolerance,
        dtype=dtype,
        device=device,
        include=include,
        exclude=exclude,
    )
    check_fetch_mode(fetch)
    with (
        open_checkpoint(base, revision=base_revision, fetch="stream") as before,
        open_finetune(finetune, before, revision=revision, fetch="stream") as after,
    ):
        return make_plan(before, after, _paired(before, after, settings), settings)


def open_results(path: Ref) -> Results:
    """Reads a run's folder, or a results.json."""
    return Results.load(path)


def _paired(before: Checkpoint, after: Checkpoint, settings: SolverOptions) -> Any:
    return pair_checkpoints(before, after, include=settings.include, exclude=settings.exclude, experts=True)


def _identity(before: Checkpoint, after: Checkpoint, settings: SolverOptions) -> dict[str, Any]:
    """What has to be equal for one process to go on with another's work."""
    return {
        "tool_version": version("deltarank"),
        "base": before.fingerprint,
        "finetune": after.fingerprint,
        "settings": settings.to_plain(),
    }


@dataclass
class _Run:
    """One pass over a plan. Tensors come and go inside `measurer`; here are numbers only."""

    plan: Plan
    measurer: MatrixMeasurer
    progress: ProgressListener
    run_folder: RunFolder | None
    audit: int
    checkpoints: tuple[Checkpoint, Checkpoint]
    matrices: dict[str, MatrixResult] = field(default_factory=dict)
    left_out: dict[str, Skipped] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def resume(self, records: Sequence[Record]) -> None:
        """What an earlier process finished. A line that is not one of ours is measured again."""
        for record in records:
            with suppress(KeyError, TypeError, ValueError, AttributeError, OverflowError):
                if "losses" in record:
                    matrix = matrix_from_plain(record, self.plan.settings.ranks)
                    self.matrices[matrix.name] = matrix
                else:
                    skipped = skipped_from_plain(record)
                    self.left_out[skipped.name] = skipped
        if finished := len(self.matrices) + len(self.left_out):
            self.progress.resumed(finished)

    def go(self, command: str | None) -> Results:
        started = time.perf_counter()
        self.progress.planned(self.plan)
        self._probe()
        clock = Clock(self.plan, self.matrices.keys() | self.left_out.keys(), self.checkpoints, self.progress)
        self._measure_all(clock)
        self._sum_up_all(clock)
        return self._results(command, time.perf_counter() - started)

    def _probe(self) -> None:
        """Says at once when this cannot be the base: the smallest of a few matrices tell, or a file that both have."""
        if any(len(step.pair.pieces) == 1 for step in self.plan.steps):
            return
        norms = [norm for pair in self._probes() if (norm := self._norm(pair))]
        if norms and min(norms) >= UNRELATED:
            self._warn(
                f"the delta is as large as the weights ({percent(min(norms))} of the base's size or more in "
                f"{len(norms)} of {len(norms)} matrices tried): is this the base that the finetune was trained from? "
                "Stop here and give the right base if not."
            )

    def _probes(self) -> list[Pair]:
        """Small ones, for they are read once more; a single one where that would be much of what a line carries."""
        most = min(10 * PROBES, max(len(self.plan.steps) // 3, PROBES))
        pairs = sorted((step.pair for step in self.plan.steps), key=lambda pair: pair.nbytes)[:most]
        chosen = pairs[:: max(len(pairs) // PROBES, 1)][:PROBES]
        is_streamed = any(checkpoint.traffic is not None for checkpoint in self.checkpoints)
        if is_streamed and sum(pair.nbytes for pair in chosen) > MOST_PROBED * self.plan.read_bytes:
            return chosen[:1]
        return chosen

    def _norm(self, pair: Any) -> float | None:
        """||D|| / ||W0||, if it can be had: of a finished matrix without reading it again."""
        if (known := self.matrices.get(pair.name)) is not None:
            return known.relative_norm or None
        try:
            sums = self.measurer.sums(pair)
        except CheckpointError:
            return None
        return math.sqrt(sums.energy / sums.base_energy) if sums.is_finite and sums.base_energy > 0 else None

    def _warn(self, sentence: str) -> None:
        self.warnings.append(sentence)
        self.progress.warned(sentence)

    def _measure_all(self, clock: Clock) -> None:
        waiting = [step for step in self.plan.steps if step.pair.name not in self.matrices]
        if waiting:
            self.progress.began(waiting[0].pair.name)
        pool = WorkerPool(
            lambda: MatrixMeasurer(self.plan.settings, matrices=len(self.plan.steps)), self.plan.parallel_matrices
        )
        for number, (step, result) in enumerate(pool.results(stacks(waiting)), start=1):
            self.matrices[result.name] = result
            # What failed for want of memory or a disk may work next time.
            if result.outcome not in (Outcome.FAILED, Outcome.UNREADABLE):
                self._keep(matrix_to_plain(result))
            clock.tick(result.name, step.seconds + step.pair.nbytes / READ_RATE)
            if number < len(waiting):
                self.progress.began(waiting[number].pair.name)

    def _sum_up_all(self, clock: Clock) -> None:
        waiting = [each for each in self.plan.pairing.summed if each.name not in self.left_out]
        ahead = Prefetcher(waiting)
        for number, summed in enumerate(waiting):
            ahead.reached(number)
            self.progress.began(summed.name)
            skipped = self._summed_up(summed)
            self.left_out[summed.name] = skipped
            if skipped.outcome is not Outcome.UNREADABLE:
                self._keep(skipped_to_plain(skipped))
            clock.tick(summed.name, summed.nbytes / READ_RATE)

    def _summed_up(self, summed: SummedTensor) -> Skipped:
        try:
            sums = self.measurer.sums(summed)
        except CheckpointError as error:
            return Skipped(summed.name, Outcome.UNREADABLE, error.message, summed.shape)
        energy = sums.energy if sums.is_finite else None
        return Skipped(summed.name, summed.outcome, summed.reason, summed.shape, energy)

    def _keep(self, record: Record) -> None:
        if self.run_folder is not None:
            self.run_folder.append(record)

    def _results(self, command: str | None, seconds: float) -> Results:
        matrices = tuple(self.matrices[step.pair.name] for step in self.plan.steps)
        skipped = self._skipped(matrices)
        return Results(
            base=self.plan.base,
            finetune=self.plan.finetune,
            settings={
                **self.plan.settings.to_plain(),
                **_surroundings(),
                "seconds": round(seconds, 1),
                "command": command,
            },
            matrices=matrices,
            skipped=skipped,
            verdict=judge(matrices, skipped, self.plan.finetune.short_name),
            tool_version=version("deltarank"),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            notes=(*self.plan.notes, *self.warnings, *words_on_base(self.plan.steps, self.matrices)),
            audit=self._audited(matrices),
        )

    def _skipped(self, matrices: Sequence[MatrixResult]) -> tuple[Skipped, ...]:
        """With shares: of the energy of all that both checkpoints have, as far as it was read."""
        read = [self.left_out[summed.name] for summed in self.plan.pairing.summed]
        whole = math.fsum([*(m.energy for m in matrices), *(s.energy or 0.0 for s in read)])
        shared = [replace(s, share=s.energy / whole) if s.energy is not None and whole > 0 else s for s in read]
        return (*shared, *self.plan.pairing.skipped)

    def _audited(self, matrices: Sequence[MatrixResult]) -> tuple[AuditRow, ...]:
        measured = [
            (step, matrix)
            for step, matrix in zip(self.plan.steps, matrices, strict=True)
            if matrix.outcome is Outcome.MEASURED
        ]
        drawn = random.Random(len(measured)).sample(measured, min(self.audit, len(measured)))
        rows = []
        for step, matrix in drawn:
            self.progress.began(f"audit of {matrix.name}")
            rows.append(self.measurer.audit(step, matrix))
        return tuple(rows)


def _surroundings() -> dict[str, Any]:
    return {"threads": torch.get_num_threads(), "torch": str(torch.__version__)}
