"""The library's functions: measure the outputs of a finetune and of what is served in its place, or plan that."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Unpack

from deltarank.jobs.outputs.job import OutputsJob
from deltarank.jobs.outputs.options import OutputsKeywords, OutputsOptions
from deltarank.jobs.outputs.plan import OutputsPlan
from deltarank.results import Results
from deltarank.runtime import PairRefs, ProgressListener, Ref, parse_keywords, shows_keywords
from deltarank.system import user_path


@shows_keywords(OutputsKeywords, OutputsOptions)
def outputs(
    base: Ref,
    finetune: Ref,
    *,
    output: Ref | None = None,
    force: bool = False,
    progress: ProgressListener | None = None,
    **keywords: Unpack[OutputsKeywords],
) -> Results:
    """Measures how far other models are from the finetune, in their predictions and in the text that they generate.

    The finetune is the reference. Candidates are the base plus D_r, for each rank of `ranks`; adapters; other
    checkpoints; the finetune quantised. The base alone, the finetune with its matrices truncated to the rank of the
    verdict, and two controls, which must read zero, are always included.

    Args:
        base, finetune: a folder as transformers saves it, or a Hub id, `org/name` or `org/name@revision`.
        output: the folder of a run. If it has no results of this pair, `compare` measures the weights first; then
            `outputs` is added to its results.json. If it has outputs, only the candidates that they do not have are
            measured, on the same texts and with the same settings: arguments that are not given are taken from them.
            The same call resumes after the process died, and ends with the same numbers. Without it nothing is written.
        force: measures all again, in place of the outputs in `output`; also replaces another pair's run.
        progress: receives the progress of the job.
        ranks: the ranks r of the candidates: 64, [16, 64] or "16,64".
        adapters, server: folders of adapters in PEFT's format, applied as PEFT or as this server applies them.
        models: other checkpoints that have the finetune's tokenizer.
        yardsticks: formats that the finetune is quantised in: q8_0, q4_0, nf4, int8, fp8.
        texts: files or folders of .txt, .md and .jsonl files, which every model reads and is scored on.
        prompts: a .txt or .jsonl file; None: the built-in prompts. Every model answers each `samples` times at
            temperature 1. The finetune's answers are a text that all are scored on.
        attribute: "module" or "layer": each is truncated to rank r alone inside the finetune, to measure its KLD.
        samples: answers to each prompt; 0: none.
        max_tokens: the longest answer.
        seed: of the answers and of the bootstrap intervals.
        device: where models run: "cpu", "cuda", "cuda:1", "mps".
        dtype: the type that models run in; "auto": float32 on a CPU, else the one that the finetune is stored in.
        batch: documents, or answers, that go through a model together; None: documents of 2,048 tokens in all (8,192
            on a GPU), and 8 to 32 answers, as many as keep their keys and values within 1 GB.
        trust_remote_code: whether code that comes with a checkpoint may run.
        quick: a first answer in a few minutes. The defaults are rank 64 alone and one answer of up to 64 tokens to each
            of at most 24 prompts, which yardsticks and the delta of any rank do not answer; of each text, 2,048 tokens
            are read, and truncation alone is not measured. The results say so. A later call without it, in the same
            folder, replaces these outputs.
        base_revision, revision: branch, tag or commit of the base and of the finetune on the Hub.
        fetch: for a model that is not in the Hub's cache: "download", "stream" (read by byte ranges, not stored), or
            "auto", as the free disk space allows. A model that is streamed is read again for every candidate.

    Raises:
        UsageError: an argument is not usable.
        CheckpointError, PairingError, AdapterError: see `deltarank.errors`.
        JobError: predictions are NaN, memory is not enough, or a text cannot be read.
        OutputError: `output` holds something else, or outputs of other texts or settings, or cannot be written.
    """
    progress = progress or ProgressListener()
    refs, options = parse_keywords(base, finetune, keywords, OutputsOptions.of_keywords)
    with _open(refs, options, keywords, progress) as job:
        return job.run(None if output is None else user_path(output), force=force, progress=progress)


@shows_keywords(OutputsKeywords, OutputsOptions)
def plan_outputs(
    base: Ref, finetune: Ref, *, output: Ref | None = None, force: bool = False, **keywords: Unpack[OutputsKeywords]
) -> OutputsPlan:
    """What `outputs` would do, with the memory, disk and time that it needs. No weight is read, no model downloaded.

    Arguments and errors as for `outputs`. Nothing is written: of `output` it is checked that `outputs` can use it.
    """
    refs, options = parse_keywords(base, finetune, keywords, OutputsOptions.of_keywords)
    with _open(refs.without_download(), options, keywords, ProgressListener()) as job:
        if output is not None:
            job = job.for_folder(user_path(output), force=force)
            job.check_output(user_path(output), force=force)
        return job.plan


@contextmanager
def _open(
    refs: PairRefs, options: OutputsOptions, given: Collection[str], progress: ProgressListener
) -> Iterator[OutputsJob]:
    """Both are whole checkpoints here: a finetune that is an adapter is a candidate, not the reference."""
    refs.announce(progress)
    with refs.base.open(refs.fetch, progress) as base, refs.finetune.open(refs.fetch, progress) as finetune:
        yield OutputsJob(base, finetune, options, refs.fetch, frozenset(given))
