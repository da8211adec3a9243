"""The results of finished outputs and of candidates that were added to them, as one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from deltarank.jobs.outputs.options import OutputsOptions
from deltarank.jobs.outputs.quick import is_quick_note
from deltarank.jobs.outputs.summary import EXCERPT_CANDIDATES, excerpt_order
from deltarank.jobs.outputs.verdict import verdict_sentences
from deltarank.results import FINETUNE, FINETUNE_AGAIN, CandidateKind, CandidateResult, Excerpt, Outputs, Sample

_KINDS = list(CandidateKind)


def with_added(earlier: Outputs, added: Outputs, options: OutputsOptions) -> Outputs:
    """The earlier outputs with more candidates, and the verdict on all of them. No earlier figure changes.

    Args:
        added: of the same texts and prompts, without a candidate that `earlier` has.
        options: those of all candidates.
    """
    candidates = tuple(sorted((*earlier.candidates, *added.candidates), key=_place))
    names = [candidate.name for candidate in candidates]
    headline_rank = added.settings["headline_rank"]
    shown = _names_in_excerpts(earlier, candidates, headline_rank)
    merged = replace(
        earlier,
        candidates=candidates,
        samples=tuple(_merged_samples(earlier.samples, added.samples, [FINETUNE, FINETUNE_AGAIN, *names])),
        excerpts=tuple(_merged_excerpts(earlier.excerpts, added.excerpts, shown)),
        notes=_merged_notes(earlier.notes, added.notes),
        settings={**options.to_plain(), "headline_rank": headline_rank},
    )
    return replace(merged, sentences=verdict_sentences(merged))


def _place(candidate: CandidateResult) -> tuple[int, float]:
    """By kind, ranks in ascending order, and else in the order in which they were measured."""
    is_rank = candidate.kind is CandidateKind.RANK
    return _KINDS.index(candidate.kind), (candidate.rank or math.inf) if is_rank else 0.0


def _names_in_excerpts(earlier: Outputs, candidates: Sequence[CandidateResult], headline_rank: int) -> list[str]:
    """All that were there, then the new ones, up to the limit."""
    order = excerpt_order(candidates, headline_rank)
    there = {name for excerpt in earlier.excerpts for name in excerpt.kld}
    new = [name for name in order if name not in {each.name for each in earlier.candidates}]
    chosen = there | {*new[: max(EXCERPT_CANDIDATES - len(there), 0)]}
    return [name for name in order if name in chosen]


def _merged_samples(earlier: Sequence[Sample], added: Sequence[Sample], names: Sequence[str]) -> Iterator[Sample]:
    for old, new in zip(earlier, added, strict=True):
        answers, further = {**new.answers, **old.answers}, {**new.further, **old.further}
        yield replace(
            old,
            answers={name: answers[name] for name in names if name in answers},
            further={name: further[name] for name in names if name in further},
        )


def _merged_excerpts(earlier: Sequence[Excerpt], added: Sequence[Excerpt], names: Sequence[str]) -> Iterator[Excerpt]:
    for old, new in zip(earlier, added, strict=True):
        kld = {**new.kld, **old.kld}
        yield replace(old, kld={name: kld[name] for name in names if name in kld})


def _merged_notes(earlier: Sequence[str], added: Sequence[str]) -> tuple[str, ...]:
    """Each once. What a quick measurement has left out is said of all candidates."""
    quick = [note for note in added if is_quick_note(note)]
    kept = (note for note in earlier if not is_quick_note(note))
    return tuple(dict.fromkeys((*quick, *kept, *added)))
