"""Compares what an adapter does to the base with what finetuning changed, tensor by tensor."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, overload

from deltarank.adapters import LoadEffect, LoraAdapter, UnusedTensor, open_adapter
from deltarank.checkpoints import Checkpoint
from deltarank.errors import UsageError
from deltarank.jobs.verify.job import VerifyJob
from deltarank.jobs.verify.live_question import LiveQuestion
from deltarank.jobs.verify.measure import TOLERANCE
from deltarank.jobs.verify.merge_verdict import judge_merge
from deltarank.jobs.verify.verdict import judge_fit
from deltarank.results import IgnoredTensor, MergeCheck, Verification, other_share
from deltarank.runtime import PairRefs, ProgressListener, Ref, SolverOptions, utc_timestamp
from deltarank.servers import PEFT, get_server
from deltarank.system import Default, tool_version


@overload
def verify(
    base: Ref,
    finetune: Ref,
    adapter: Ref,
    *,
    merged: Literal[False] = False,
    server: str | None = None,
    live: str | None = None,
    key: str | None = None,
    tolerance: float | None = None,
    base_revision: str | None = None,
    revision: str | None = None,
    adapter_revision: str | None = None,
    fetch: str = Default.FETCH,
    device: str = Default.DEVICE,
    progress: ProgressListener | None = None,
) -> Verification: ...
@overload
def verify(
    base: Ref,
    finetune: Ref,
    adapter: Ref,
    *,
    merged: Literal[True],
    server: None = None,
    live: None = None,
    key: None = None,
    tolerance: None = None,
    base_revision: str | None = None,
    revision: str | None = None,
    adapter_revision: str | None = None,
    fetch: str = Default.FETCH,
    device: str = Default.DEVICE,
    progress: ProgressListener | None = None,
) -> MergeCheck: ...
def verify(
    base: Ref,
    finetune: Ref,
    adapter: Ref,
    *,
    merged: bool = False,
    server: str | None = None,
    live: str | None = None,
    key: str | None = None,
    tolerance: float | None = None,
    base_revision: str | None = None,
    revision: str | None = None,
    adapter_revision: str | None = None,
    fetch: str = Default.FETCH,
    device: str = Default.DEVICE,
    progress: ProgressListener | None = None,
) -> Verification | MergeCheck:
    """Measures ||W - (W0 + L)||^2 of a LoRA L from disk, tensor by tensor, beside the least possible at its rank.

    With `merged`, it is checked instead whether the finetune is the base with this adapter merged into it.

    Args:
        base, finetune: as for `deltarank.compare`.
        adapter: a folder with adapter_config.json and adapter_model.safetensors, from any tool; or a Hub id.
        merged: repeats the usual ways to merge number by number, and returns a `MergeCheck`.
        server: applies the adapter as this server does: "vllm", "sglang", "lorax", "llama.cpp"; "portable": as none of
            them refuses it; "peft" or None: as PEFT does.
        live: `MODEL@URL` of a running server with an OpenAI-compatible API. Before the weights are measured, a few
            requests tell whether it applies the adapter: `Verification.live`.
        key: the environment variable with the key of that server; None: OPENAI_API_KEY, if it is set.
        tolerance: nats per token within which that server answers as a model; None: 0.002, which other kernels and
            rounding stay below.
        base_revision, revision, adapter_revision: branch, tag or commit on the Hub of each.
        fetch: for a model that is not in the Hub's cache: "download", "stream" or "auto".
        device: where to compute.
        progress: receives the progress.

    Raises:
        UsageError: an argument is not usable. (slug "option-without-live") `key` or `tolerance` is given without
            `live`.
        AdapterError: the adapter cannot be read, is refused by the server, or belongs to another base.
        CheckpointError, PairingError, JobError: see `deltarank.errors`.
    """
    get_server(server or PEFT)
    if merged:
        _refuse_with_merged(server, live)
    options = SolverOptions(ranks=(1,), tolerance=TOLERANCE, device=device)
    refs = PairRefs.of(base, finetune, base_revision=base_revision, revision=revision, fetch=fetch)
    progress = progress or ProgressListener()
    question = LiveQuestion(live, key, tolerance)
    opened = open_adapter(adapter, revision=adapter_revision)
    with opened as lora, question.server() as running, refs.open(progress) as (before, after):
        job = VerifyJob(lora, before, after, server, options)
        if merged:
            return _checked_merge(job, lora, before, after, progress)
        check = None
        if running is not None:
            check = question.answer(running, before, lora, job.applied, options.torch_device)
            progress.noted(f"{check.sentences[0]} The weights are measured next.")
        return replace(_verification(job, lora, before, after, server, progress), live=check)


def _refuse_with_merged(server: str | None, live: str | None) -> None:
    if live is not None:
        raise UsageError(
            "--merged and --live were both given: --merged is about a checkpoint, --live about a server.",
            cure="Leave out --merged, and give the finetune, to ask the server.",
            slug="merged-and-live",
        )
    if server is None:
        return
    raise UsageError(
        "--merged and --server were both given: merges are repeated as PEFT makes them.",
        cure="Leave out --server, or leave out --merged to measure the adapter as the server applies it.",
        slug="merged-and-server",
    )


def _verification(
    job: VerifyJob,
    adapter: LoraAdapter,
    base: Checkpoint,
    finetune: Checkpoint,
    server: str | None,
    progress: ProgressListener,
) -> Verification:
    rows = job.fits(progress)
    ignored = job.ignored()
    unused = _ignored(ignored)
    kind, sentences = judge_fit(
        rows,
        unused,
        _harmful(ignored),
        job.unloaded,
        name=adapter.reference.short_name,
        server=get_server(server).title if server else None,
        made_for=adapter.config.base,
        unpaired=job.unpaired(rows),
        calibrated=adapter.is_calibrated,
    )
    return Verification(
        base=base.reference,
        finetune=finetune.reference,
        adapter=adapter.reference,
        server=server,
        tensors=rows,
        unused=unused,
        notes=(*_evidence(server), *job.notes(rows)),
        kind=kind,
        sentences=sentences,
        tool_version=tool_version(),
        created=utc_timestamp(),
    )


def _evidence(server: str | None) -> tuple[str, ...]:
    """How it is known what the server does."""
    return (get_server(server).evidence.sentence,) if server else ()


def _checked_merge(
    job: VerifyJob, adapter: LoraAdapter, base: Checkpoint, merged: Checkpoint, progress: ProgressListener
) -> MergeCheck:
    rows = job.merges(progress)
    ignored = job.ignored()
    kind, strength, sentences = judge_merge(
        rows,
        job.skipped,
        _harmful(ignored),
        job.unloaded,
        merged=merged.reference.short_name,
        adapter=adapter.reference.short_name,
        unpaired=job.unpaired(rows),
    )
    return MergeCheck(
        base=base.reference,
        merged=merged.reference,
        adapter=adapter.reference,
        kind=kind,
        sentences=sentences,
        strength=strength,
        other_share=other_share(rows),
        tensors=rows,
        unused=_ignored(ignored),
        notes=job.notes(),
        tool_version=tool_version(),
        created=utc_timestamp(),
    )


def _ignored(entries: list[UnusedTensor]) -> tuple[IgnoredTensor, ...]:
    return tuple(IgnoredTensor(entry.name, entry.reason) for entry in entries)


def _harmful(entries: list[UnusedTensor]) -> list[UnusedTensor]:
    """What of an adapter's file keeps the rest from being loaded as it is."""
    return [entry for entry in entries if entry.effect is not LoadEffect.NONE]
