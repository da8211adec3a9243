"""What the loss does to what the model says: the finetune's predictions and words beside those of what is served."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from deltarank.errors import DeltarankError, OutputError
from deltarank.jobs.compare import CompareJob, CompareOptions
from deltarank.jobs.outputs.candidates import CandidateSet
from deltarank.jobs.outputs.job import Job, prepared
from deltarank.jobs.outputs.options import DEFAULT_RANKS, OutputsOptions, Ref
from deltarank.jobs.outputs.plan import OutputsPlan
from deltarank.jobs.outputs.run import Run, clear, has_scores
from deltarank.results import DEFAULT_RANKS as WEIGHT_RANKS
from deltarank.results import Outputs, Results, listing
from deltarank.runtime import (
    IDENTITY,
    RESULTS,
    ProgressListener,
    RunFolder,
    as_output_error,
    differences,
)
from deltarank.system import current_command

__all__ = ["Outputs", "OutputsPlan", "outputs", "plan_outputs"]

PARTIAL = "outputs.partial"

_MAY_GO_ON = ("out-of-memory", "hub-lost", "hub-unreachable", "unreadable")
"""Failures after which the same command, or one with a smaller batch, may find all that was done before."""


def outputs(
    base: Ref,
    finetune: Ref,
    *,
    ranks: Sequence[int] = DEFAULT_RANKS,
    adapters: Sequence[Ref] = (),
    models: Sequence[Ref] = (),
    yardsticks: Sequence[str] = (),
    texts: Sequence[Ref] = (),
    prompts: Ref | None = None,
    attribute: str | None = None,
    samples: int = 4,
    max_tokens: int = 128,
    seed: int = 0,
    server: str | None = None,
    device: str = "cpu",
    dtype: str = "auto",
    batch: int | None = None,
    trust_remote_code: bool = False,
    base_revision: str | None = None,
    revision: str | None = None,
    fetch: str = "auto",
    output: Ref | None = None,
    force: bool = False,
    progress: ProgressListener | None = None,
) -> Results:
    """Measures how far what is served speaks from the finetune: in its predictions, and in what it writes.

    The finetune is the reference. Candidates are the base with D_r in its matrices, for each of `ranks`; adapters;
    other checkpoints; the finetune quantised. The base alone and two controls, which must read zero, are always there.

    Args:
        base, finetune: a folder as transformers saves it, or a Hub id, `org/name` or `org/name@revision`.
        ranks: of the candidates.
        adapters, server: folders in PEFT's format, applied as PEFT does, or as `server` would.
        models: other checkpoints that read the same tokens.
        yardsticks: of q8_0, q4_0, nf4, int8, fp8: the finetune quantised so.
        texts: files or folders of .txt, .md, .jsonl, to be read and scored.
        prompts: a .txt or .jsonl file; None: the built-in ones. Every model answers each `samples` times with up to
            `max_tokens` tokens, at temperature 1, drawn by `seed`; the finetune's answers are a text, too.
        attribute: "module", "layer" or "matrix": each is brought to rank r alone in the finetune, and its KLD is told.
        device, dtype: where and in which type models run; "auto": float32 on a CPU, else as the finetune is stored.
        batch: documents in one pass; None: as many as fit well.
        trust_remote_code: run a program that came with a checkpoint.
        fetch: as for `deltarank.compare`; a model that is streamed from the Hub is read again for every candidate.
        output: a run's folder. Where it holds no results of this pair, `compare` measures the weights first; then
            `outputs` is added to its results.json. The same call goes on after a process that died, and ends with the
            same numbers. Without it nothing is written.
        force: replaces other outputs in `output`, and another pair's run.
        progress: is told how it goes.

    Raises:
        UsageError: an argument cannot be meant.
        CheckpointError, PairingError, AdapterError: see `deltarank.errors`.
        JobError: predictions are NaN, memory is not enough, a text cannot be read.
        OutputError: `output` holds something else, or cannot be written.
    """
    options = OutputsOptions.checked(
        ranks=ranks,
        adapters=adapters,
        server=server,
        models=models,
        yardsticks=yardsticks,
        texts=texts,
        prompts=prompts,
        attribute=attribute,
        samples=samples,
        max_tokens=max_tokens,
        seed=seed,
        device=device,
        dtype=dtype,
        batch=batch,
        trust_remote_code=trust_remote_code,
    )
    progress = progress or ProgressListener()
    with prepared(options, base, finetune, (base_revision, revision), fetch, progress) as job, ExitStack() as stack:
        folder = Path(output) if output is not None else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        weights = _weights(job, folder, force=force, progress=progress)
        return _spoken(job, weights, folder, force=force, progress=progress)


def plan_outputs(
    base: Ref,
    finetune: Ref,
    *,
    ranks: Sequence[int] = DEFAULT_RANKS,
    adapters: Sequence[Ref] = (),
    models: Sequence[Ref] = (),
    yardsticks: Sequence[str] = (),
    texts: Sequence[Ref] = (),
    prompts: Ref | None = None,
    attribute: str | None = None,
    samples: int = 4,
    max_tokens: int = 128,
    seed: int = 0,
    server: str | None = None,
    device: str = "cpu",
    dtype: str = "auto",
    batch: int | None = None,
    trust_remote_code: bool = False,
    base_revision: str | None = None,
    revision: str | None = None,
    fetch: str = "auto",
) -> OutputsPlan:
    """What `outputs` would do, with figures of memory and time; no weight is read. Arguments and errors as there."""
    options = OutputsOptions.checked(
        ranks=ranks,
        adapters=adapters,
        server=server,
        models=models,
        yardsticks=yardsticks,
        texts=texts,
        prompts=prompts,
        attribute=attribute,
        samples=samples,
        max_tokens=max_tokens,
        seed=seed,
        device=device,
        dtype=dtype,
        batch=batch,
        trust_remote_code=trust_remote_code,
    )
    with prepared(options, base, finetune, (base_revision, revision), fetch, ProgressListener()) as job:
        return job.plan


def _weights(job: Job, folder: Path, *, force: bool, progress: ProgressListener) -> Results:
    """The run's results as far as they are about weights: those that are there, or measured now."""
    if _is_of(job, folder):
        return Results.load(folder)
    options = CompareOptions(ranks=tuple({*WEIGHT_RANKS, *job.options.ranks}), device=job.options.settings.device)
    return CompareJob(job.models.before, job.models.after, options).run(folder, force=force, progress=progress)


def _is_of(job: Job, folder: Path) -> bool:
    """Whether a finished run of this very pair lies there."""
    try:
        identity = json.loads((folder / IDENTITY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    prints = {"base": job.models.before.fingerprint, "finetune": job.models.after.fingerprint}
    is_same = isinstance(identity, dict) and all(identity.get(side) == mark for side, mark in prints.items())
    return is_same and (folder / RESULTS).is_file()


def _refuse_other(folder: Path, found: object, wanted: dict[str, Any]) -> None:
    raise OutputError(
        f"{folder} holds other outputs: {listing(differences(found, wanted))}.",
        cure="Give -o another folder, or --force to replace these outputs; what was measured of weights is kept.",
        slug="run-differs",
    )


def _spoken(job: Job, weights: Results, folder: Path, *, force: bool, progress: ProgressListener) -> Results:
    """With the outputs: those of an earlier process, or measured now and written into the run's results."""
    earlier = weights.outputs
    if not force and earlier is not None and earlier.settings.get("identity") == job.identity:
        progress.resumed(len(earlier.candidates))
        return weights
    if earlier is not None and not force:
        _refuse_other(folder, earlier.settings.get("identity"), job.identity)
    if force:
        clear(folder / PARTIAL)
    try:
        with RunFolder(folder / PARTIAL, job.identity) as run_folder, CandidateSet(job.models) as candidate_set:
            records = run_folder.open(force=force, room=job.plan.disk)
            if records:
                progress.resumed(len(records))
            found = Run(job, candidate_set, run_folder, progress).go(records)
    except DeltarankError as error:
        if not (isinstance(error, OutputError) or error.slug in _MAY_GO_ON or has_scores(folder / PARTIAL)):
            clear(folder / PARTIAL)  # a job that cannot be done does not stand in the way of one that can
        raise
    settings = {**found.settings, "identity": job.identity, "command": current_command()}
    results = replace(weights, outputs=replace(found, settings=settings))
    with as_output_error(folder):
        results.save(folder / RESULTS)
    clear(folder / PARTIAL)
    return results
