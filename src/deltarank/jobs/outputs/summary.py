"""From scores and answers on disk to what is said of them: plain numbers for the results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from deltarank.divergence import Answer, TokenStats, summarise_logits, summarise_writing
from deltarank.jobs.outputs.answers import Answers
from deltarank.jobs.outputs.candidates import Candidate
from deltarank.jobs.outputs.options import AGAIN, BASE, FINETUNE, OutputsOptions
from deltarank.jobs.outputs.scoring import Scorer, TextSet
from deltarank.jobs.outputs.verdict import sentences_of
from deltarank.results import (
    AttributionResult,
    CandidateKind,
    CandidateResult,
    Excerpt,
    Logits,
    Outputs,
    Sample,
    Text,
    Writing,
)

EXCERPTS_A_TEXT = 3
PIECES = 400
SAMPLES = 24
LETTERS = 2000
COLOURED = 6
"""Candidates whose KLD is told token by token: the page has no room for more."""


@dataclass(frozen=True)
class Material:
    """All that a finished job has."""

    reference: str
    options: OutputsOptions
    candidates: Sequence[Candidate]
    texts: Sequence[TextSet]
    scorer: Scorer
    answers: Answers
    tokenizer: Any
    attribution: tuple[AttributionResult, ...]
    headline: int
    notes: tuple[str, ...]
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def base_number(self) -> int:
        return next(i for i, candidate in enumerate(self.candidates) if candidate.kind is CandidateKind.BASE)

    def stats(self, number: int, text: TextSet) -> dict[str, TokenStats]:
        return self.scorer.stats(number, text.numbers)


def findings(of: Material) -> Outputs:
    """The results of a job. The same material gives the same numbers."""
    outputs = Outputs(
        reference=of.reference,
        texts=tuple(_text(of, text) for text in of.texts),
        candidates=tuple(_candidate(of, number, candidate) for number, candidate in enumerate(of.candidates)),
        again=_writing(of, AGAIN),
        samples=tuple(_samples(of)),
        excerpts=tuple(_excerpts(of)),
        attribution=of.attribution,
        notes=of.notes,
        settings={**of.options.to_plain(), "headline_rank": of.headline},
    )
    return replace(outputs, sentences=sentences_of(outputs))


def _text(of: Material, text: TextSet) -> Text:
    documents = [of.scorer.documents[i] for i in text.numbers]
    return Text(text.name, len(documents), sum(document.scored_tokens for document in documents), text.own)


def _candidate(of: Material, number: int, candidate: Candidate) -> CandidateResult:
    seconds = of.seconds.get(candidate.name)
    return CandidateResult(
        name=candidate.name,
        kind=candidate.kind,
        rank=candidate.rank,
        logits=tuple(_logits(of, number)),
        writing=_writing(of, candidate.name) if candidate.kind is not CandidateKind.CONTROL else None,
        note=candidate.note,
        seconds=None if seconds is None else round(seconds, 1),
    )


def _logits(of: Material, number: int) -> Iterator[Logits]:
    """On each text of which it could read something."""
    for text in of.texts:
        stats = of.stats(number, text)
        if stats:
            base = of.stats(of.base_number, text)
            yield summarise_logits(text.name, stats, base=base, sampled_from_reference=text.own, seed=of.options.seed)


def _writing(of: Material, name: str) -> Writing | None:
    reference, written = of.answers.of(FINETUNE), of.answers.of(name)
    if not reference or not written:
        return None
    return summarise_writing(reference, written, seed=of.options.seed)


def _samples(of: Material) -> Iterator[Sample]:
    """One answer of each to a prompt. "finetune" has the seed of the candidates, "finetune again" the other one."""
    names = [candidate.name for candidate in of.candidates if candidate.kind is not CandidateKind.CONTROL]
    columns = {FINETUNE: AGAIN, AGAIN: FINETUNE, **{name: name for name in names}}
    firsts = {shown: _first_answers(of.answers.of(who)) for shown, who in columns.items()}
    for number, prompt in enumerate(of.answers.prompts[:SAMPLES]):
        answers = {name: texts[number] for name, texts in firsts.items() if number in texts}
        if answers:
            yield Sample(prompt.text, prompt.category, answers)


def _first_answers(answers: Sequence[Answer]) -> dict[int, str]:
    return {answer.prompt_index: answer.text[:LETTERS] for answer in answers if answer.sample_index == 0}


def _excerpts(of: Material) -> Iterator[Excerpt]:
    """Of each text, the documents at its quarters: not the beginning alone."""
    coloured = _coloured(of)
    for text in of.texts:
        chosen = sorted({text.numbers[i * len(text.numbers) // EXCERPTS_A_TEXT] for i in range(EXCERPTS_A_TEXT)})
        for number in chosen:
            document = of.scorer.documents[number]
            klds = {name: values for name, i in coloured.items() if (values := _token_klds(of, i, number)) is not None}
            yield Excerpt(text.name, document.name, document.token_strings(of.tokenizer)[:PIECES], klds)


def _coloured(of: Material) -> dict[str, int]:
    """The base, the headline's rank, other ranks, adapters, models; controls and yardsticks last."""
    order = [BASE, f"rank {of.headline}"]
    kinds = (CandidateKind.ADAPTER, CandidateKind.MODEL, CandidateKind.RANK, CandidateKind.YARDSTICK)
    order += [candidate.name for kind in kinds for candidate in of.candidates if candidate.kind is kind]
    numbers = {candidate.name: i for i, candidate in enumerate(of.candidates)}
    return {name: numbers[name] for name in list(dict.fromkeys(order))[:COLOURED]}


def _token_klds(of: Material, candidate: int, number: int) -> tuple[float | None, ...] | None:
    """KLD of each token; None for one that is not scored. None where the candidate could not read the document."""
    document = of.scorer.documents[number]
    stats = of.scorer.stats(candidate, [number]).get(document.name)
    if stats is None:
        return None
    klds: list[float | None] = [None] * len(document.ids)
    for position, kld in zip(stats.position.tolist(), stats.kld.tolist(), strict=True):
        klds[position] = float(f"{kld:.4g}") if np.isfinite(kld) else None
    return tuple(klds[:PIECES])
