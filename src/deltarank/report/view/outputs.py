"""What the page shows of a run's outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from deltarank.report.view.attribution import AttributionView, attribution_view
from deltarank.report.view.candidate_tables import candidate_notes, logits_table, writing_table
from deltarank.report.view.candidates import (
    CandidateView,
    RankCandidate,
    candidate_at,
    candidate_views,
    rank_sentence,
)
from deltarank.report.view.provenance import Provenance, clean_command, settings_facts
from deltarank.report.view.samples import ExcerptView, SampleView, excerpt_views, sample_views
from deltarank.report.view.table import Table
from deltarank.report.view.text import label
from deltarank.results import CandidateKind, Outputs, Text, escape


@dataclass(frozen=True)
class OutputsView:
    """The outputs of one run. `at_rank` and `rank_sentences` have an item for each rank of the page.

    The first column of `writing_table` is the similarity of texts, if `has_similarity`. `default_text` is the index of
    the text that is shown at first: the finetune's own answers, if there are any.
    """

    sentences: tuple[str, ...]
    texts: tuple[Text, ...]
    default_text: int
    candidates: tuple[CandidateView, ...]
    at_rank: tuple[RankCandidate, ...]
    rank_sentences: tuple[str, ...]
    logits_tables: tuple[Table | None, ...]
    writing_table: Table | None
    has_similarity: bool
    candidate_notes: tuple[tuple[str, str], ...]
    samples: tuple[SampleView, ...]
    excerpts: tuple[ExcerptView, ...]
    attribution: tuple[AttributionView, ...]
    provenance: Provenance

    @property
    def base(self) -> int | None:
        """The index of the base among the candidates."""
        return next((i for i, candidate in enumerate(self.candidates) if candidate.kind is CandidateKind.BASE), None)


def outputs_view(outputs: Outputs | None, ranks: Sequence[int]) -> OutputsView | None:
    """The outputs of one run at the ranks of the page; None if there are none."""
    if outputs is None:
        return None
    texts = tuple(replace(text, name=label(text.name)) for text in outputs.texts)
    default_text = next((i for i, text in enumerate(texts) if text.own), 0)
    candidates = candidate_views(outputs, ranks)
    at_rank = tuple(candidate_at(rank, candidates) for rank in ranks)
    return OutputsView(
        sentences=tuple(escape(sentence) for sentence in outputs.sentences),
        texts=texts,
        default_text=default_text,
        candidates=candidates,
        at_rank=at_rank,
        rank_sentences=tuple(
            rank_sentence(rank, candidate, candidates, texts, default_text)
            for rank, candidate in zip(ranks, at_rank, strict=True)
        ),
        logits_tables=tuple(logits_table(candidates, text, i) for i, text in enumerate(texts)),
        writing_table=writing_table(candidates, outputs.again, similarity=outputs.tells_by_similarity),
        has_similarity=outputs.tells_by_similarity,
        candidate_notes=candidate_notes(candidates, outputs.again),
        samples=sample_views(outputs),
        excerpts=excerpt_views(outputs),
        attribution=tuple(attribution_view(each) for each in sorted(outputs.attribution, key=lambda each: each.rank)),
        provenance=Provenance(
            facts=tuple(settings_facts(outputs.settings, without={"command", "identity"})),
            command=clean_command(outputs.settings),
            notes=tuple(escape(note) for note in outputs.notes),
        ),
    )


def output_ranks(outputs: Outputs | None) -> set[int]:
    """The ranks at which outputs were measured."""
    candidates = outputs.candidates if outputs else ()
    return {c.rank for c in candidates if c.kind is CandidateKind.RANK and c.rank is not None}
