"""The library's functions: compare two checkpoints, plan a comparison, read its results."""

from __future__ import annotations

import os
from typing import Unpack

from deltarank.jobs.compare.job import CompareJob
from deltarank.jobs.compare.options import CompareKeywords, CompareOptions
from deltarank.results import Results
from deltarank.runtime import Plan, ProgressListener, Ref, parse_keywords, shows_keywords
from deltarank.system import user_path


@shows_keywords(CompareKeywords, CompareOptions)
def compare(
    base: Ref,
    finetune: Ref,
    *,
    output: Ref | None = None,
    force: bool = False,
    progress: ProgressListener | None = None,
    **keywords: Unpack[CompareKeywords],
) -> Results:
    """Measures D = W - W0 of every matrix, and what its best rank-r approximation loses, at all ranks in one pass.

    Args:
        base, finetune: a folder, a file of weights, or a Hub id, `org/name` or `org/name@revision`. The finetune may
            be a LoRA adapter in PEFT's format on the base.
        output: a folder for results.json. Finished matrices are stored there, so that the same call resumes after the
            process died, and ends with the same numbers. Without it nothing is written.
        force: replaces another run in `output`.
        progress: receives the progress of the run.
        ranks: the ranks to measure: 64, [16, 64] or "16,64".
        solver: "exact" (all singular values), "krylov" (the leading ones, to `tolerance`), or "auto", the faster.
        tolerance: how far a cosine distance may be off with krylov.
        dtype: the precision of the computation; operands are upcast to it before they are subtracted.
        device: where to compute: "cpu", "cuda", "cuda:1", "mps".
        include, exclude: globs over tensor names. What matches `include` is measured whatever it is; exclude wins.
        audit: the number of random matrices to measure again by a full SVD in float64.
        calibration_texts: files or folders (.txt, .md, .jsonl) that the finetune reads. Then each matrix has an
            `activation_loss`, too: what D_r loses of D x for the inputs x that the matrix gets. transformers has to
            know the model, and it has to fit into memory.
        calibration_tokens: how many tokens of these texts are read.
        base_revision, revision: branch, tag or commit of the base and of the finetune on the Hub.
        fetch: for a model that is not in the Hub's cache: "download", "stream" (read by byte ranges, not stored), or
            "auto", as the free disk space allows. The numbers are the same.

    Raises:
        UsageError: an argument is not usable.
        CheckpointError, PairingError, AdapterError: see `deltarank.errors`.
        JobError: transformers cannot run the finetune on the calibration text, or it does not fit into memory.
        OutputError: `output` holds something else, or cannot be written.
    """
    refs, options = parse_keywords(base, finetune, keywords, CompareOptions)
    progress = progress or ProgressListener()
    with refs.open(progress) as checkpoints:
        folder = None if output is None else user_path(output)
        return CompareJob(*checkpoints, options).run(folder, force=force, progress=progress)


@shows_keywords(CompareKeywords, CompareOptions)
def plan(
    base: Ref, finetune: Ref, *, output: Ref | None = None, force: bool = False, **keywords: Unpack[CompareKeywords]
) -> Plan:
    """What `compare` would do, from the headers alone: no tensor is read, and no model is downloaded.

    Arguments and errors as for `compare`. Nothing is written: of `output` it is checked that `compare` can use it.
    """
    refs, options = parse_keywords(base, finetune, keywords, CompareOptions)
    with refs.without_download().open(ProgressListener()) as checkpoints:
        job = CompareJob(*checkpoints, options)
        if output is not None:
            job.check_output(user_path(output), force=force)
        return job.plan


def open_results(path: str | os.PathLike[str]) -> Results:
    """Reads the folder of a run, or its results.json."""
    return Results.load(path)
