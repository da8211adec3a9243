"""The candidates of a run, which of them is shown at each rank, and the sentence about it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from deltarank.report.view.text import behaviour_percent, label, unbroken, unique_labels
from deltarank.results import CandidateKind, Logits, Outputs, Text, Writing, escape, figure, percent


@dataclass(frozen=True)
class CandidateView:
    """A model that was compared with the finetune. `logits` has an item for each text; None where it was not scored.

    `rank_index` is that of a rank-r delta among the ranks of the page.
    """

    name: str
    kind: CandidateKind
    rank: int | None
    rank_index: int | None
    note: str | None
    logits: tuple[Logits | None, ...]
    writing: Writing | None


@dataclass(frozen=True)
class RankCandidate:
    """The index of the rank-r delta that is shown at a rank of the page: measured at this rank, or at the nearest."""

    index: int | None
    is_exact: bool


def candidate_views(outputs: Outputs, ranks: Sequence[int]) -> tuple[CandidateView, ...]:
    """In the order of the run, with unique names."""
    names = unique_labels(label(candidate.name) for candidate in outputs.candidates)
    views = []
    for candidate, name in zip(outputs.candidates, names, strict=True):
        by_text = {logits.text: logits for logits in candidate.logits}
        is_rank = candidate.kind is CandidateKind.RANK and candidate.rank in ranks
        views.append(
            CandidateView(
                name=name,
                kind=candidate.kind,
                rank=candidate.rank,
                rank_index=list(ranks).index(candidate.rank) if is_rank and candidate.rank is not None else None,
                note=escape(candidate.note) if candidate.note else None,
                logits=tuple(by_text.get(text.name) for text in outputs.texts),
                writing=candidate.writing,
            )
        )
    return tuple(views)


def candidate_at(rank: int, candidates: Sequence[CandidateView]) -> RankCandidate:
    """For a rank that was not measured, the nearest by ratio is shown; of two equally near ones, the smaller."""
    measured = [(c.rank, i) for i, c in enumerate(candidates) if c.kind is CandidateKind.RANK and c.rank]
    if not measured:
        return RankCandidate(None, is_exact=False)
    nearest, index = min(measured, key=lambda pair: (abs(math.log(pair[0] / rank)), pair[0]))
    return RankCandidate(index, is_exact=nearest == rank)


def rank_sentence(
    rank: int, at_rank: RankCandidate, candidates: Sequence[CandidateView], texts: Sequence[Text], text: int
) -> str:
    """ "At rank 64, the KL divergence from the finetune is 0.071 nats per token (between q8_0 and q4_0); ..." """
    if not texts:
        return ""
    if at_rank.index is None or not at_rank.is_exact:
        return f"Outputs were not measured at rank {rank}."
    logits = candidates[at_rank.index].logits[text]
    if logits is None:
        return f"Outputs were not measured at rank {rank} on {texts[text].name}."
    kept = f"{behaviour_percent(logits.kept.value)} of the behaviour is kept, and " if logits.kept else ""
    return unbroken(
        f"At rank {rank}, the KL divergence from the finetune is {figure(logits.kld.mean)} nats per "
        f"token{_beside_quantised(logits, candidates, text)}; {kept}the most likely token is the same "
        f"{percent(logits.same_top_p.value)} of the time (text: {texts[text].name})."
    )


def _beside_quantised(logits: Logits, candidates: Sequence[CandidateView], text: int) -> str:
    """The quantised finetunes with the next smaller and the next larger divergence."""
    quantised = sorted(
        (other.kld.mean, candidate.name)
        for candidate in candidates
        if candidate.kind is CandidateKind.YARDSTICK and (other := candidate.logits[text]) is not None
    )
    below = [name for mean, name in quantised if mean <= logits.kld.mean]
    above = [name for mean, name in quantised if mean > logits.kld.mean]
    if below and above:
        return f" (between {below[-1]} and {above[0]})"
    if below:
        return f" (more than {below[-1]})"
    return f" (less than {above[0]})" if above else ""
