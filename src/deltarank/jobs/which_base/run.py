"""Finds which of several bases a finetune came from: the one that it is nearest to, in a sample of its matrices."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

from deltarank.checkpoints import Checkpoint, hub_id_of, may_be_one_model, quoted
from deltarank.errors import CheckpointError, JobError, UsageError
from deltarank.jobs.which_base.sample import SampledCandidate, read_sample, shuffled_names
from deltarank.jobs.which_base.verdict import decide, without_unlike
from deltarank.results import BaseChoice, BaseKind, CandidateBase, Reference, listing
from deltarank.runtime import (
    DeltaReader,
    ModelRef,
    ProgressListener,
    Ref,
    SolverOptions,
    TimeEstimate,
    as_tuple,
)
from deltarank.system import Default

_OWN_SIZE = "Give candidates of the finetune's own architecture and size."

SAMPLE_GROWTH = 4
"""How many times larger the second sample is, if the first one is inconclusive."""


def which_base(
    finetune: Ref,
    candidates: Sequence[Ref],
    *,
    revision: str | None = None,
    matrices: int = Default.SAMPLED_MATRICES,
    seed: int = Default.SEED,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    fetch: str = Default.SAMPLE_FETCH,
    device: str = Default.DEVICE,
    progress: ProgressListener | None = None,
) -> BaseChoice:
    """Compares a finetune with each candidate in the same few matrices: ||W - W0|| / ||W0|| is least for its base.

    A finetune differs from its base by a few per cent of the base's norm; from an unrelated model of the same
    architecture by about sqrt(2), because their entries are independent. The matrices are a random sample, one module
    after another, of those that all candidates have. If the nearest two are close, four times as many are read.

    Args:
        finetune, candidates: folders, files of weights, or Hub ids, as for `deltarank.compare`.
        revision: branch, tag or commit of the finetune on the Hub.
        matrices: the size of the first sample.
        seed: of the sample.
        include, exclude: globs over the names of the tensors to sample from.
        fetch: for a Hub model that is not in the cache: "stream" reads only the sample; "download"; "auto".
        device: where to compute.
        progress: receives the progress.

    Raises:
        UsageError: an argument is not usable.
        CheckpointError: the finetune cannot be read.
        JobError: (slug "no-candidate") no candidate can be compared with it.
    """
    _check(candidates, matrices)
    options = SolverOptions(ranks=(1,), device=device, include=as_tuple(include), exclude=as_tuple(exclude))
    progress = progress or ProgressListener()
    with ExitStack() as stack:
        after = stack.enter_context(ModelRef(finetune, revision).open(fetch, progress))
        sampled = [_open_candidate(ref, after, options, fetch, progress, stack) for ref in candidates]
        if not any(candidate.pairs for candidate in sampled):
            raise _no_candidate(sampled, after)
        kind, sentence = _search(sampled, after, options, matrices, seed, progress)
        choice = BaseChoice(kind, sentence, after.reference, tuple(each.result for each in sampled), seed)
        return replace(choice, sentence=f"{sentence}{_not_compared(sampled)}{_named_by_card(after, choice.base)}")


def _check(candidates: Sequence[Ref], matrices: int) -> None:
    if isinstance(candidates, str | os.PathLike) or not candidates:
        raise UsageError(
            "No list of candidates was given.",
            cure="Give a list: which_base(finetune, [a, b, c]).",
            slug="no-candidate",
        )
    if matrices < 1:
        raise UsageError(f"A sample of {matrices} matrices is too small.", cure="Read at least one.", slug="bad-number")


def _open_candidate(
    ref: Ref, after: Checkpoint, options: SolverOptions, fetch: str, progress: ProgressListener, stack: ExitStack
) -> SampledCandidate:
    """A candidate that cannot be read does not stop the comparison with the others."""
    candidate = SampledCandidate(CandidateBase(Reference(os.fspath(ref))))
    try:
        before = stack.enter_context(ModelRef(ref).open(fetch, progress))
    except CheckpointError as error:
        candidate.fail(error.message, cure=error.cure)
    else:
        candidate.pair_with(before, after, options)
    return candidate


def _search(
    candidates: Sequence[SampledCandidate],
    after: Checkpoint,
    options: SolverOptions,
    matrices: int,
    seed: int,
    progress: ProgressListener,
) -> tuple[BaseKind, str]:
    names, reader = shuffled_names(candidates, seed), DeltaReader(options)
    name = after.reference.short_name
    estimate = TimeEstimate(progress, float(min(matrices, len(names))))
    read_sample(candidates, names[:matrices], reader, progress, estimate)
    answer = _decide(candidates, name, reader)
    if answer[0] is not BaseKind.TOO_CLOSE or len(names) <= matrices:
        return answer
    larger = names[: SAMPLE_GROWTH * matrices]
    progress.noted(f"The nearest candidates are too close to tell: {len(larger):,} matrices are read.")
    estimate = TimeEstimate(progress, float(len(larger)), resumed=float(matrices))
    read_sample(candidates, larger, reader, progress, estimate)
    return _decide(candidates, name, reader)


def _decide(candidates: Sequence[SampledCandidate], name: str, reader: DeltaReader) -> tuple[BaseKind, str]:
    results, left_out = without_unlike([each.result for each in candidates])
    for each, result in zip(candidates, results, strict=True):
        each.result = result
    sampled = {id(each.result): each for each in candidates}
    kind, sentence = decide(results, name, lambda result: sampled[id(result)].is_alike(reader))
    return kind, f"{sentence}{left_out}"


def _named_by_card(after: Checkpoint, found: CandidateBase | None) -> str:
    """What the finetune's model card says, which may be wrong."""
    if not after.named_bases:
        return ""
    names = listing([quoted(each) for each in after.named_bases], most=3)
    ref = hub_id_of(found.reference) if found else None
    is_same = ref is not None and any(may_be_one_model(ref, each) for each in after.named_bases)
    return f" Its model card names {names} as its base{', too' if is_same else ''}."


def _not_compared(candidates: Sequence[SampledCandidate]) -> str:
    """A sentence on those that could have been the base, were they stored otherwise."""
    curable = [each for each in candidates if each.cure]
    if not curable:
        return ""
    refs = listing([each.result.reference.ref for each in curable], most=3)
    return f" {refs} could not be compared: {curable[0].result.reason} {curable[0].cure}"


def _no_candidate(candidates: Sequence[SampledCandidate], after: Checkpoint) -> JobError:
    reasons = [f"{each.result.reference.ref}: {each.result.reason}" for each in candidates]
    return JobError(
        f"No candidate can be compared with {after.reference.ref}. {' '.join(reasons[:3])}",
        cure=" ".join(dict.fromkeys(each.cure or _OWN_SIZE for each in candidates)),
        slug="no-candidate",
    )
