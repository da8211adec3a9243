"""The library's functions: extract an adapter, plan an extraction."""

from __future__ import annotations

from typing import Unpack

from deltarank.jobs.extract.job import ExtractJob
from deltarank.jobs.extract.options import ExtractKeywords, ExtractOptions
from deltarank.jobs.extract.plan import ExtractionPlan
from deltarank.jobs.extract.result import ExtractedAdapter
from deltarank.jobs.extract.run import DrawBudget
from deltarank.runtime import ProgressListener, Ref, parse_keywords, shows_keywords
from deltarank.system import user_path


@shows_keywords(ExtractKeywords, ExtractOptions)
def extract(
    base: Ref,
    finetune: Ref,
    *,
    output: Ref,
    force: bool = False,
    progress: ProgressListener | None = None,
    **keywords: Unpack[ExtractKeywords],
) -> ExtractedAdapter:
    """Writes the best LoRA of a rank for D = W - W0 that a server can load, and reports what it loses.

    B = U sqrt(S) and A = sqrt(S) V' of the truncated singular value decomposition D_r = U S V' (Eckart and Young
    1936), with lora_alpha = r. The format is PEFT's.

    Args:
        base, finetune: a folder, a file of weights, or a Hub id, `org/name` or `org/name@revision`. The finetune may
            be a LoRA adapter in PEFT's format on the base.
        output: the adapter's folder, which appears whole or not at all. Finished matrices are stored beside it, in
            OUTPUT.partial, so that the same call resumes after the process died, and writes the same bytes.
        force: replaces an adapter in `output`.
        progress: receives the progress of the run.
        rank: a rank that the server accepts; or "auto", the smallest of them that keeps to `max_error`.
        max_error: the largest ||D - D_r|| / ||D|| over all extracted matrices; with "auto" only.
        server: the server whose rules the adapter follows: "vllm", "sglang", "lorax", "llama.cpp", "peft", or
            "portable", the rules of all of them.
        dtype: of A and B, "bfloat16", "float16" or "float32"; by default that of most weights of the finetune.
        device: where to compute: "cpu", "cuda", "cuda:1", "mps".
        include, exclude: globs over tensor names. A tensor that matches `include` is extracted if the server can load
            it; exclude wins.
        base_revision, revision: branch, tag or commit of the base and of the finetune on the Hub.
        fetch: for a model that is not in the Hub's cache: "download", "stream" (read by byte ranges, not stored), or
            "auto", as the free disk space allows. The adapter is the same.

    Raises:
        UsageError: an argument is not usable, or the server would refuse the rank.
        CheckpointError, PairingError, AdapterError: see `deltarank.errors`.
        JobError: there is nothing to extract, or no servable rank keeps to `max_error`.
        OutputError: `output` holds something else, or cannot be written.
    """
    return extract_with_picture(base, finetune, None, output=output, force=force, progress=progress, **keywords)


def extract_with_picture(
    base: Ref,
    finetune: Ref,
    draw: DrawBudget | None,
    *,
    output: Ref,
    force: bool = False,
    progress: ProgressListener | None = None,
    **keywords: Unpack[ExtractKeywords],
) -> ExtractedAdapter:
    """`extract` with a picture on the model card; `draw=None`: a chart in text. Other arguments and errors as there."""
    refs, options = parse_keywords(base, finetune, keywords, ExtractOptions)
    progress = progress or ProgressListener()
    with refs.open(progress) as checkpoints:
        return ExtractJob(*checkpoints, options).run(user_path(output), force=force, progress=progress, draw=draw)


@shows_keywords(ExtractKeywords, ExtractOptions)
def plan_extraction(
    base: Ref, finetune: Ref, *, output: Ref | None = None, force: bool = False, **keywords: Unpack[ExtractKeywords]
) -> ExtractionPlan:
    """What `extract` would do, from the headers alone: no tensor is read, and no model is downloaded.

    Arguments and errors as for `extract`. Nothing is written: of `output` it is checked that `extract` can use it.
    """
    refs, options = parse_keywords(base, finetune, keywords, ExtractOptions)
    with refs.without_download().open(ProgressListener()) as checkpoints:
        job = ExtractJob(*checkpoints, options)
        if output is not None:
            job.check_output(user_path(output), force=force)
        return job.plan
