"""The results of a job, in plain numbers, from the stored scores and answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from deltarank.divergence import Answer, Tokenizer, TokenStats, similarity_p, summarise_logits, summarise_writing
from deltarank.jobs.outputs.answers import Answers
from deltarank.jobs.outputs.candidate_names import BASE, rank_name
from deltarank.jobs.outputs.candidates import Candidate
from deltarank.jobs.outputs.options import OutputsOptions
from deltarank.jobs.outputs.scoring import Scorer, TextSet
from deltarank.jobs.outputs.verdict import verdict_sentences
from deltarank.results import (
    FINETUNE,
    FINETUNE_AGAIN,
    AttributionResult,
    CandidateKind,
    CandidateResult,
    DocumentScore,
    Excerpt,
    Logits,
    Outputs,
    OwnAnswer,
    Sample,
    Text,
    Writing,
)

EXCERPTS_PER_TEXT = 3
EXCERPT_TOKENS = 400
SAMPLED_PROMPTS = 24
SAMPLE_CHARACTERS = 2000

EXCERPT_CANDIDATES = 6
"""Candidates whose KLD is listed token by token: more would make the report too large."""


@dataclass(frozen=True)
class Measurements:
    """Everything that a finished run has measured.

    reference        the name of the finetune
    candidates       in the order of their numbers in the scorer
    headline_rank    the rank that the verdict is about
    seconds          how long each candidate took, by name
    earlier          finished outputs on the same texts, which have the base
    """

    reference: str
    options: OutputsOptions
    candidates: Sequence[Candidate]
    texts: Sequence[TextSet]
    scorer: Scorer
    answers: Answers
    tokenizer: Tokenizer
    attribution: tuple[AttributionResult, ...]
    headline_rank: int
    notes: tuple[str, ...]
    seconds: Mapping[str, float]
    earlier: Outputs | None = None

    def base_scores(self, text: TextSet) -> Mapping[str, TokenStats | DocumentScore]:
        """Of each document, by its name."""
        if self.earlier is None:
            number = next(i for i, candidate in enumerate(self.candidates) if candidate.kind is CandidateKind.BASE)
            return self.scorer.stats(number, text.numbers)
        base = self.earlier.candidate(BASE)
        return {each.name: each for logits in base.logits if logits.text == text.name for each in logits.by_document}


def summarise(run: Measurements) -> Outputs:
    """The results with their verdict. Equal measurements give equal results.

    Of candidates that are added to earlier results, the results are those that `with_added` merges into them.
    """
    outputs = Outputs(
        reference=run.reference,
        texts=tuple(_text(run, text) for text in run.texts),
        candidates=tuple(_candidate(run, number, candidate) for number, candidate in enumerate(run.candidates)),
        again=_writing(run, FINETUNE_AGAIN),
        similarity_p=_similarity_p(run),
        samples=tuple(_samples(run)),
        excerpts=tuple(_excerpts(run)),
        own_answers=tuple(_own_answers(run)),
        attribution=run.attribution,
        notes=run.notes,
        settings={**run.options.to_plain(), "headline_rank": run.headline_rank},
    )
    return replace(outputs, sentences=verdict_sentences(outputs))


def _text(run: Measurements, text: TextSet) -> Text:
    tokens = sum(document.scored_tokens for document in text.documents)
    return Text(text.name, len(text.documents), tokens, text.own)


def _candidate(run: Measurements, number: int, candidate: Candidate) -> CandidateResult:
    seconds = run.seconds.get(candidate.name)
    return CandidateResult(
        name=candidate.name,
        kind=candidate.kind,
        rank=candidate.rank,
        logits=tuple(_logits(run, number)),
        writing=_writing(run, candidate.name) if candidate.kind.answers_prompts else None,
        note=candidate.note,
        seconds=None if seconds is None else round(seconds, 1),
    )


def _logits(run: Measurements, number: int) -> Iterator[Logits]:
    """On each text of which the candidate could read a document."""
    for text in run.texts:
        if stats := run.scorer.stats(number, text.numbers):
            base = run.base_scores(text)
            yield summarise_logits(text.name, stats, base=base, sampled_from_reference=text.own, seed=run.options.seed)


def _writing(run: Measurements, name: str) -> Writing | None:
    reference, candidate = run.answers.of_model(FINETUNE), run.answers.of_model(name)
    return summarise_writing(reference, candidate, seed=run.options.seed) if reference and candidate else None


def _similarity_p(run: Measurements) -> float | None:
    reference, again, base = (run.answers.of_model(name) for name in (FINETUNE, FINETUNE_AGAIN, BASE))
    return similarity_p(reference, again, base) if reference and again and base else None


def _own_answers(run: Measurements) -> Iterator[OwnAnswer]:
    for each in run.answers.of_model(FINETUNE):
        yield OwnAnswer(each.prompt_index, each.sample_index, each.ids, each.text, each.prompt_ids)


def _samples(run: Measurements) -> Iterator[Sample]:
    """The answers of each model to each prompt.

    The column "finetune" shows the answers with the candidates' seed (see `candidate_seed`), "finetune again" the
    others.
    """
    names = [candidate.name for candidate in run.candidates if candidate.kind.answers_prompts]
    columns = {FINETUNE: FINETUNE_AGAIN, FINETUNE_AGAIN: FINETUNE, **{name: name for name in names}}
    by_column = {column: _answers_by_prompt(run.answers.of_model(name)) for column, name in columns.items()}
    for number, prompt in enumerate(run.answers.prompts[:SAMPLED_PROMPTS]):
        answers = {column: texts[number] for column, texts in by_column.items() if number in texts}
        if answers:
            first = {column: texts[0] for column, texts in answers.items()}
            further = {column: tuple(texts[1:]) for column, texts in answers.items() if len(texts) > 1}
            yield Sample(prompt.text, prompt.category, first, further)


def _answers_by_prompt(answers: Sequence[Answer]) -> dict[int, list[str]]:
    """The texts by the index of the prompt, in the order of their seeds."""
    texts: dict[int, list[str]] = {}
    for answer in sorted(answers, key=lambda each: each.sample_index):
        texts.setdefault(answer.prompt_index, []).append(answer.text[:SAMPLE_CHARACTERS])
    return texts


def _excerpts(run: Measurements) -> Iterator[Excerpt]:
    """Of each text, documents from its beginning, from a third and from two thirds of it."""
    candidates = _excerpt_candidates(run)
    for text in run.texts:
        for number in sorted(
            {text.numbers[i * len(text.numbers) // EXCERPTS_PER_TEXT] for i in range(EXCERPTS_PER_TEXT)}
        ):
            document = run.scorer.documents[number]
            klds = {name: klds for name, i in candidates.items() if (klds := _token_klds(run, i, number)) is not None}
            yield Excerpt(text.name, document.name, document.token_strings(run.tokenizer)[:EXCERPT_TOKENS], klds)


def _excerpt_candidates(run: Measurements) -> dict[str, int]:
    """Names and numbers, up to the limit."""
    numbers = {candidate.name: i for i, candidate in enumerate(run.candidates)}
    return {name: numbers[name] for name in excerpt_order(run.candidates, run.headline_rank)[:EXCERPT_CANDIDATES]}


def excerpt_order(candidates: Sequence[Candidate | CandidateResult], headline_rank: int) -> list[str]:
    """Names of candidates: the base, the headline's rank, adapters, models, other ranks, yardsticks."""
    kinds = (CandidateKind.ADAPTER, CandidateKind.MODEL, CandidateKind.RANK, CandidateKind.YARDSTICK)
    by_kind = [each.name for kind in kinds for each in candidates if each.kind is kind]
    known = {each.name for each in candidates}
    return [name for name in dict.fromkeys((BASE, rank_name(headline_rank), *by_kind)) if name in known]


def _token_klds(run: Measurements, candidate: int, document: int) -> tuple[float | None, ...] | None:
    """The KLD of each token, None for one that is not scored; or None if the candidate could not read the document."""
    read = run.scorer.documents[document]
    stats: TokenStats | None = run.scorer.stats(candidate, [document]).get(read.name)
    if stats is None:
        return None
    klds: list[float | None] = [None] * len(read.ids)
    for position, kld in zip(stats.position.tolist(), stats.kld.tolist(), strict=True):
        klds[position] = float(f"{kld:.4g}") if np.isfinite(kld) else None
    return tuple(klds[:EXCERPT_TOKENS])
