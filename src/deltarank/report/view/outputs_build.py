"""Outputs -> OutputsView."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from deltarank.report.view.outputs_page import (
    AGAIN,
    AttributionView,
    CandidateView,
    Dialled,
    ExcerptView,
    OutputsView,
    PartView,
    SampleView,
    TextView,
)
from deltarank.report.view.outputs_sentences import attribution_sentence, rank_line
from deltarank.report.view.text import clean, clean_lines, rounded, short
from deltarank.report.view.text_diff import difference, words_of
from deltarank.results import AttributionResult, CandidateKind, Excerpt, Outputs, Part, Sample

MOST_EXCERPTS = 12
MOST_PIECES = 400
MOST_SAMPLES = 24
MOST_CHARACTERS = 2000
MOST_WRITTEN = 300_000
MOST_PARTS = 2000
"""How much of each the page carries, for each run; results.json has it all."""

_ENDINGS = (*".!?:;\"'”’»)]}>`。！？…\n", "</s>")
"""What a text that is whole ends with, as a rule."""

_TOLD_APART = {"command", "identity"}

REFERENCE, REFERENCE_AGAIN = "finetune", "finetune again"
"""Whose answers these are, among those of the candidates."""


def outputs_view(found: Outputs | None, ranks: Sequence[int]) -> OutputsView | None:
    """What the page shows of them at these ranks; None where there are none."""
    if found is None:
        return None
    texts = tuple(TextView(_label(text.name), text.own, text.documents, text.tokens) for text in found.texts)
    start = next((i for i, text in enumerate(texts) if text.own), 0)
    candidates = _candidates(found)
    dial = tuple(_dialled(rank, candidates) for rank in ranks)
    return OutputsView(
        sentences=tuple(clean(sentence) for sentence in found.sentences),
        notes=tuple(clean(note) for note in found.notes),
        command=clean(command) if isinstance(command := found.settings.get("command"), str) else None,
        facts=tuple(
            (clean(key).replace("_", " "), clean(_value(value)))
            for key, value in found.settings.items()
            if key not in _TOLD_APART and value not in (None, "", [], {})
        ),
        texts=texts,
        start=start,
        candidates=candidates,
        dial=dial,
        lines=tuple(
            rank_line(rank, at, candidates, texts, start) if texts else "" for rank, at in zip(ranks, dial, strict=True)
        ),
        again=found.again,
        samples=_samples(found),
        excerpts=tuple(_excerpt(excerpt, found) for excerpt in found.excerpts[:MOST_EXCERPTS]),
        attribution=tuple(_attribution(each) for each in sorted(found.attribution, key=lambda a: a.rank)),
    )


def output_ranks(outputs: Outputs | None) -> set[int]:
    """The ranks that were held against the finetune."""
    if outputs is None:
        return set()
    return {c.rank for c in outputs.candidates if c.kind is CandidateKind.RANK and c.rank is not None}


def _label(name: str) -> str:
    return short(clean(name), most=36)


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(_value(each) for each in value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _candidates(outputs: Outputs) -> tuple[CandidateView, ...]:
    """In the order of the run, each with a name of its own."""
    seen: dict[str, int] = {}
    made = []
    for each in outputs.candidates:
        label = _label(each.name)
        seen[label] = seen.get(label, 0) + 1
        by_text = {logits.text: logits for logits in each.logits}
        made.append(
            CandidateView(
                name=label if seen[label] == 1 else f"{label} ({seen[label]})",
                kind=each.kind,
                rank=each.rank,
                note=clean(each.note) if each.note else None,
                logits=tuple(by_text.get(text.name) for text in outputs.texts),
                writing=each.writing,
            )
        )
    return tuple(made)


def _dialled(rank: int, candidates: Sequence[CandidateView]) -> Dialled:
    """The nearest by ratio stands in for a rank that was not measured; of two equally near, the smaller."""
    known = [(c.rank, i) for i, c in enumerate(candidates) if c.kind is CandidateKind.RANK and c.rank]
    if not known:
        return Dialled(None, exact=False)
    nearest, place = min(known, key=lambda each: (abs(math.log(each[0] / rank)), each[0]))
    return Dialled(place, exact=nearest == rank)


def _numbers(outputs: Outputs) -> dict[str, int]:
    """Whose an answer is, by number: candidates as they stand, and the finetune's own with other seeds."""
    return {**{each.name: i for i, each in enumerate(outputs.candidates)}, REFERENCE_AGAIN: AGAIN}


def _excerpt(excerpt: Excerpt, outputs: Outputs) -> ExcerptView:
    numbers = _numbers(outputs)
    return ExcerptView(
        text=_label(excerpt.text),
        document=_label(excerpt.document),
        pieces=tuple(clean_lines(piece) for piece in excerpt.pieces[:MOST_PIECES]),
        cut=len(excerpt.pieces) > MOST_PIECES or not "".join(excerpt.pieces).rstrip(" ").endswith(_ENDINGS),
        kld={
            numbers[name]: tuple(rounded(nats, 3) if nats is not None else None for nats in values[:MOST_PIECES])
            for name, values in excerpt.kld.items()
            if name in numbers
        },
    )


def _samples(outputs: Outputs) -> tuple[SampleView, ...]:
    """The first of them, as many as there is room for; one at least."""
    made: list[SampleView] = []
    written = 0
    for sample in outputs.samples[:MOST_SAMPLES]:
        written += sum(min(len(answer), MOST_CHARACTERS) for answer in sample.answers.values())
        if made and written > MOST_WRITTEN:
            break
        made.append(_sample(sample, outputs))
    return tuple(made)


def _sample(sample: Sample, outputs: Outputs) -> SampleView:
    numbers = _numbers(outputs)
    words = {name: words_of(_cut(answer)) for name, answer in sample.answers.items()}
    answer = words.get(REFERENCE, ())
    return SampleView(
        prompt=_cut(sample.prompt),
        category=_label(sample.category),
        answer=answer,
        others={numbers[name]: difference(answer, other) for name, other in words.items() if name in numbers},
    )


def _cut(text: str) -> str:
    return clean_lines(text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 1] + "…")


def _attribution(attribution: AttributionResult) -> AttributionView:
    kld = math.fsum(part.kld for part in attribution.parts)
    by_kld = sorted(attribution.parts, key=lambda part: -part.kld)[:MOST_PARTS]
    parts = tuple(_part(part, kld) for part in by_kld)
    return AttributionView(
        rank=attribution.rank,
        unit=clean(attribution.unit),
        text=_label(attribution.text),
        parts=parts,
        sentence=attribution_sentence(attribution),
        mapped=bool(parts) and all(part.layer is not None and part.module is not None for part in parts),
    )


def _part(part: Part, kld: float) -> PartView:
    return PartView(
        name=_label(part.name),
        layer=None if part.layer is None else str(part.layer),
        module=None if part.module is None else _label(part.module),
        kld=part.kld,
        share_kld=part.kld / kld if kld > 0 else 0.0,
        share_lost=part.share_lost,
    )
