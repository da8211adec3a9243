"""What the page shows of a run's outputs: plain dataclasses, labelled, cut and cleaned, with no markup in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from deltarank.report.view.text_diff import Difference
from deltarank.results import CandidateKind, Logits, Writing

AGAIN = -1
"""Stands for the finetune's answers with other seeds where candidates are numbered."""


@dataclass(frozen=True)
class TextView:
    """A text that was scored. `own`: the finetune's answers."""

    name: str
    own: bool
    documents: int
    tokens: int


@dataclass(frozen=True)
class CandidateView:
    """What was held against the finetune. `logits` runs along the texts; None where it was not scored."""

    name: str
    kind: CandidateKind
    rank: int | None
    note: str | None
    logits: tuple[Logits | None, ...]
    writing: Writing | None


@dataclass(frozen=True)
class Dialled:
    """The rank candidate that stands for a place of the dial: measured at this very rank, or the nearest one."""

    candidate: int | None
    exact: bool


@dataclass(frozen=True)
class ExcerptView:
    """Pieces of text that join to it, and nats for each by candidate; None where a piece was not scored.

    `cut`: the text seems to go on.
    """

    text: str
    document: str
    pieces: tuple[str, ...]
    cut: bool
    kld: Mapping[int, tuple[float | None, ...]]


@dataclass(frozen=True)
class SampleView:
    """A prompt, the finetune's answer, and how the others' answers differ from it."""

    prompt: str
    category: str
    answer: tuple[str, ...]
    others: Mapping[int, Difference]


@dataclass(frozen=True)
class PartView:
    """A part of the model that alone was brought to the rank. The shares are of the sums over all parts."""

    name: str
    layer: str | None
    module: str | None
    kld: float
    share_kld: float
    share_lost: float


@dataclass(frozen=True)
class AttributionView:
    """The parts at one rank, largest KLD first. `mapped`: each has a layer and a module, so there is a map."""

    rank: int
    unit: str
    text: str
    parts: tuple[PartView, ...]
    sentence: str
    mapped: bool


@dataclass(frozen=True)
class OutputsView:
    """All of it. `dial` and `lines` run along the ranks of the page, `start` is the text that is shown at first."""

    sentences: tuple[str, ...]
    notes: tuple[str, ...]
    command: str | None
    facts: tuple[tuple[str, str], ...]
    texts: tuple[TextView, ...]
    start: int
    candidates: tuple[CandidateView, ...]
    dial: tuple[Dialled, ...]
    lines: tuple[str, ...]
    again: Writing | None
    samples: tuple[SampleView, ...]
    excerpts: tuple[ExcerptView, ...]
    attribution: tuple[AttributionView, ...]

    @property
    def base(self) -> int | None:
        """The base among the candidates."""
        return next((i for i, each in enumerate(self.candidates) if each.kind is CandidateKind.BASE), None)

    @property
    def written(self) -> bool:
        """Whether anyone's writing was held against the finetune's."""
        return self.again is not None or any(each.writing for each in self.candidates)
