"""What people read on the page: scored text token by token, and answers to the same prompt side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from deltarank.report.view.text import escape_lines, label, significant
from deltarank.report.view.text_diff import Difference, difference, words_of
from deltarank.results import FINETUNE, FINETUNE_AGAIN, Excerpt, Outputs, Sample

FINETUNE_AGAIN_INDEX = -1
"""Stands for the finetune's answers with other seeds among the indices of candidates."""

MOST_EXCERPTS = 12
MOST_PIECES = 400
MOST_SAMPLES = 24
MOST_CHARACTERS = 2000
MOST_CHARACTERS_IN_ALL = 300_000
"""How much of each the page has for each run; results.json has all."""

_ENDINGS = (*".!?:;\"'”’»)]}>`。！？…\n", "</s>")
"""How a complete text usually ends."""


@dataclass(frozen=True)
class ExcerptView:
    """Pieces that join to a text, and the nats of each by index of the candidate; None where it was not scored.

    `is_cut`: the text seems to go on.
    """

    text: str
    document: str
    pieces: tuple[str, ...]
    is_cut: bool
    kld: Mapping[int, tuple[float | None, ...]]


@dataclass(frozen=True)
class SampleView:
    """A prompt, the finetune's answer in words, and how the candidates' answers differ from it."""

    prompt: str
    category: str
    answer: tuple[str, ...]
    others: Mapping[int, Difference]


def excerpt_views(outputs: Outputs) -> tuple[ExcerptView, ...]:
    """The first excerpts, each with its first pieces."""
    return tuple(_excerpt(excerpt, outputs) for excerpt in outputs.excerpts[:MOST_EXCERPTS])


def _excerpt(excerpt: Excerpt, outputs: Outputs) -> ExcerptView:
    indices = _indices(outputs)
    return ExcerptView(
        text=label(excerpt.text),
        document=label(excerpt.document),
        pieces=tuple(escape_lines(piece) for piece in excerpt.pieces[:MOST_PIECES]),
        is_cut=len(excerpt.pieces) > MOST_PIECES or not "".join(excerpt.pieces).rstrip(" ").endswith(_ENDINGS),
        kld={
            indices[name]: tuple(significant(nats, 3) for nats in values[:MOST_PIECES])
            for name, values in excerpt.kld.items()
            if name in indices
        },
    )


def sample_views(outputs: Outputs) -> tuple[SampleView, ...]:
    """The first samples, within the limit of characters; at least one."""
    views: list[SampleView] = []
    characters = 0
    for sample in outputs.samples[:MOST_SAMPLES]:
        characters += sum(min(len(answer), MOST_CHARACTERS) for answer in sample.answers.values())
        if views and characters > MOST_CHARACTERS_IN_ALL:
            break
        views.append(_sample(sample, outputs))
    return tuple(views)


def _sample(sample: Sample, outputs: Outputs) -> SampleView:
    indices = _indices(outputs)
    words = {name: words_of(_shortened(answer)) for name, answer in sample.answers.items()}
    answer = words.get(FINETUNE, ())
    return SampleView(
        prompt=_shortened(sample.prompt),
        category=label(sample.category),
        answer=answer,
        others={indices[name]: difference(answer, other) for name, other in words.items() if name in indices},
    )


def _indices(outputs: Outputs) -> dict[str, int]:
    """Name -> index of a candidate."""
    return {
        **{candidate.name: i for i, candidate in enumerate(outputs.candidates)},
        FINETUNE_AGAIN: FINETUNE_AGAIN_INDEX,
    }


def _shortened(text: str) -> str:
    return escape_lines(text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 1] + "…")
