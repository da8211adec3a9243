"""What `outputs` measured of behaviour, in plain numbers; divergences are in nats per token."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from deltarank.results.attribution import AttributionResult
from deltarank.results.codec import Count, Rank, StoredResult
from deltarank.results.formatting import count, escape, listing
from deltarank.results.logits import Logits
from deltarank.results.notebook_parts import sentences_html
from deltarank.results.ranks import PREFERRED_RANK

FINETUNE, FINETUNE_AGAIN = "finetune", "finetune again"
"""The names of the reference and of its second measurement, among candidates and answers."""

SIGNIFICANCE = 0.05
"""Of tests on texts."""


class CandidateKind(StrEnum):
    """What a candidate is.

    TRUNCATION is the finetune whose matrices that a LoRA carries are W0 + D_r: everything else is the finetune's own.
    """

    CONTROL = "control"
    BASE = "base"
    RANK = "rank"
    TRUNCATION = "truncation"
    ADAPTER = "adapter"
    MODEL = "model"
    YARDSTICK = "yardstick"

    @property
    def answers_prompts(self) -> bool:
        """Whether such a candidate writes answers. Controls and truncations are served nowhere, and only scored."""
        return self not in (CandidateKind.CONTROL, CandidateKind.TRUNCATION)


@dataclass(frozen=True)
class TwoSampleTest:
    """A classifier two-sample test: can it tell the candidate's texts from the finetune's? (Lopez-Paz and Oquab 2017)

    accuracy         of TF-IDF + logistic regression on texts it was not fitted to; 0.5 is chance
    p_value          (1 + b) / (1 + B): labels permuted within prompt, B times
    """

    accuracy: float
    p_value: float
    permutations: Count


@dataclass(frozen=True)
class Writing:
    """What a candidate writes to the prompts, compared with what the finetune writes.

    cosine           mean TF-IDF cosine between its texts and the finetune's to the same prompt
    distinct_words   distinct words / words
    words            mean length of a text
    """

    prompts: Count
    samples: Count
    cosine: float
    distinct_words: float
    words: float
    test: TwoSampleTest | None = None


@dataclass(frozen=True)
class CandidateResult:
    """A model that is compared with the finetune. `rank` is that of a rank-r delta."""

    name: str
    kind: CandidateKind
    rank: Rank | None = None
    logits: tuple[Logits, ...] = ()
    writing: Writing | None = None
    note: str | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Text:
    """A text that was scored. `own`: it is the finetune's answers, sampled at temperature 1."""

    name: str
    documents: Count
    tokens: Count
    own: bool = False


@dataclass(frozen=True)
class Excerpt:
    """Consecutive tokens of a document as pieces of text, and the KLD at each, by name of the candidate."""

    text: str
    document: str
    pieces: tuple[str, ...]
    kld: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class OwnAnswer:
    """An answer of the finetune that is a document of its own answers. Candidates that are added later read it, too.

    prompt, sample   index of the prompt; which of the answers to that prompt it is
    ids              its tokens, including the one that ends it, if it ended; `prompt_ids` those of the prompt
    """

    prompt: Count
    sample: Count
    ids: tuple[Count, ...]
    text: str
    prompt_ids: tuple[Count, ...]


@dataclass(frozen=True)
class Sample:
    """A prompt and one answer of each model: answers["finetune"], answers["finetune again"], answers["rank 64"]...

    further          the other answers of each model; those of "finetune" share the candidates' random numbers, by
                     their place in the list, those of "finetune again" share them with nobody
    """

    prompt: str
    category: str
    answers: Mapping[str, str] = field(default_factory=dict)
    further: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def all_answers(self, name: str) -> tuple[str, ...]:
        """Every stored answer of a model, in the order of their seeds; empty if there is none."""
        return (self.answers[name], *self.further.get(name, ())) if name in self.answers else ()


@dataclass(frozen=True)
class Outputs(StoredResult):
    """What a run of `outputs` measured.

    reference        the finetune's name
    again            the finetune's own answers with another seed, compared with its first ones
    similarity_p     p of the hypothesis that the base's answers are as similar to the finetune's as `again`'s are, by
                     TF-IDF cosine (Wilcoxon's signed-rank test over prompts); None without answers
    own_answers      the finetune's answers that all were scored on, as tokens
    sentences        the verdict; the first is the headline
    """

    description = "the outputs of a deltarank run"
    cure = "Run `deltarank outputs` again."

    reference: str
    texts: tuple[Text, ...]
    candidates: tuple[CandidateResult, ...]
    again: Writing | None = None
    similarity_p: float | None = None
    samples: tuple[Sample, ...] = ()
    excerpts: tuple[Excerpt, ...] = ()
    own_answers: tuple[OwnAnswer, ...] = ()
    attribution: tuple[AttributionResult, ...] = ()
    sentences: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        names = escape(listing([each.name for each in self.candidates], most=4))
        return f"<Outputs of {escape(self.reference)}: {count(len(self.candidates), 'candidate')} ({names})>"

    def _repr_html_(self) -> str:
        return sentences_html(self.sentences)

    def candidate(self, name: str) -> CandidateResult:
        """Raises KeyError if no candidate has this name."""
        for candidate in self.candidates:
            if candidate.name == name:
                return candidate
        raise KeyError(f"no candidate {name!r}; there are {[c.name for c in self.candidates]}")

    @property
    def tells_by_similarity(self) -> bool:
        """Whether text similarity says anything here: it finds the base's answers less similar than a second run's."""
        return self.similarity_p is not None and self.similarity_p <= SIGNIFICANCE

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks of the rank-r deltas that were measured, in ascending order."""
        found = {each.rank for each in self.candidates if each.kind is CandidateKind.RANK and each.rank}
        return tuple(sorted(found))

    @property
    def main_text(self) -> Text | None:
        """The text that verdicts and headlines are about: the finetune's own answers, else the first one."""
        return next((text for text in self.texts if text.own), next(iter(self.texts), None))

    def headline_candidate(self, among: Sequence[CandidateResult]) -> CandidateResult | None:
        """What the verdict is about: the rank nearest to the headline's, or else the first adapter, model, or the base.

        None if `among` has none of these.
        """
        ranks = [each for each in among if each.kind is CandidateKind.RANK and each.rank]
        if ranks:
            preferred = self.settings.get("headline_rank") or PREFERRED_RANK
            return min(ranks, key=lambda each: abs(math.log((each.rank or 1) / preferred)))
        order = (CandidateKind.ADAPTER, CandidateKind.MODEL, CandidateKind.BASE)
        return next((each for kind in order for each in among if each.kind is kind), None)
