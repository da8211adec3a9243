"""Two checkpoints in, a LoRA in PEFT's format out, and what it lost on its label."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from deltarank.adapters import open_finetune
from deltarank.checkpoints import check_fetch_mode, open_checkpoint, pair_checkpoints
from deltarank.jobs.extract.assemble import nbytes_of
from deltarank.jobs.extract.job import Job
from deltarank.jobs.extract.options import ExtractOptions
from deltarank.jobs.extract.plan import ExtractionPlan
from deltarank.jobs.extract.result import ExtractedAdapter
from deltarank.jobs.extract.run import Draw, Run
from deltarank.jobs.extract.staging import Staging
from deltarank.results import figure
from deltarank.runtime import ProgressListener

__all__ = ["ExtractedAdapter", "ExtractionPlan", "extract", "plan_extraction"]

Ref = str | os.PathLike[str]


def extract(
    base: Ref,
    finetune: Ref,
    *,
    output: Ref,
    rank: int | str = 64,
    max_error: float | None = None,
    server: str = "portable",
    dtype: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    base_revision: str | None = None,
    revision: str | None = None,
    fetch: str = "auto",
    device: str = "cpu",
    force: bool = False,
    draw: Draw | None = None,
    progress: ProgressListener | None = None,
) -> ExtractedAdapter:
    """Writes the best LoRA of a rank for D = W - W0 that a server will load, and says what it loses.

    A and B are U sqrt(S) and sqrt(S) V' of the truncated singular value decomposition, with lora_alpha = r.

    Args:
        base, finetune: a folder, a file of weights, or a Hub id, `org/name` or `org/name@revision`. The finetune may
            be a LoRA of PEFT on the base.
        output: the adapter's folder, which appears whole or not at all. Finished matrices are kept beside it, in
            OUTPUT.partial: the same call goes on after a process that died.
        rank: one that the server accepts, or "auto", the smallest at which `max_error` is kept.
        max_error: ||D - D_r|| / ||D|| over all matrices that are extracted; with "auto" only.
        server: whose rules hold: portable (every server's at once), vllm, sglang, lorax, llama.cpp, peft.
        dtype: of A and B, bfloat16, float16 or float32; by default the finetune's.
        include, exclude, fetch: as in `compare`.
        force: replaces an adapter that lies in `output`.
        draw: makes the model card's picture, as `deltarank.report.adapter_picture` does; else the card draws in text.
        progress: is told how it goes.

    Raises:
        UsageError: an argument cannot be meant, or the server would refuse the rank.
        CheckpointError, PairingError: see `deltarank.errors`.
        JobError: there is nothing to extract, or no servable rank is good enough.
        OutputError: `output` holds something else, or cannot be written.
    """
    options = ExtractOptions.checked(
        rank=rank,
        max_error=max_error,
        server_name=server,
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
        job = Job(
            options, before, after, pair_checkpoints(before, after, include=include, exclude=exclude, experts=True)
        )
        staging = stack.enter_context(Staging(Path(output), job.identity))
        if staging.is_finished and not force:
            progress.noted(f"{output} holds this very adapter already: nothing was done. --force makes it anew.")
            return ExtractedAdapter.load(output)
        staging.check_output(force=force)
        job.lay_out(
            options.rank or min(options.settings.ranks)
        )  # what can be refused is refused before the place is taken
        records = staging.open(force=force, room=0.0)
        layout = job.lay_out(options.rank or job.fitting_rank(staging, progress))
        if options.rank is None:
            progress.noted(
                f"Rank {layout.rank} is the smallest servable one with a relative error of at most {figure(max_error)}."
            )
        staging.check_room(2 * nbytes_of(layout, job.dtype))
        run = Run(job, layout, staging, progress, draw)
        run.resume(records)
        return run.go()


def plan_extraction(
    base: Ref,
    finetune: Ref,
    *,
    rank: int | str = 64,
    max_error: float | None = None,
    server: str = "portable",
    dtype: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    base_revision: str | None = None,
    revision: str | None = None,
    device: str = "cpu",
    fetch: str = "auto",
) -> ExtractionPlan:
    """What `extract` would do, from the headers alone: no tensor is read, and none is downloaded.

    Arguments and errors as there.
    """
    check_fetch_mode(fetch)
    options = ExtractOptions.checked(
        rank=rank,
        max_error=max_error,
        server_name=server,
        dtype=dtype,
        device=device,
        include=include,
        exclude=exclude,
    )
    with ExitStack() as stack:
        before = stack.enter_context(open_checkpoint(base, revision=base_revision, fetch="stream"))
        after = stack.enter_context(open_finetune(finetune, before, revision=revision, fetch="stream"))
        pairing = pair_checkpoints(before, after, include=include, exclude=exclude, experts=True)
        return Job(options, before, after, pairing).foretell()
