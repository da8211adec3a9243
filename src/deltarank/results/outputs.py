"""What `outputs` measured of behaviour, in plain numbers.

All divergences are in nats per token. The finetune is the reference P, a candidate is Q: `kld` is KL(P || Q), the
direction that llama.cpp prints; `kld_reverse` is KL(Q || P).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from deltarank.results.codec import Count, Rank, StoredResult
from deltarank.results.formatting import count, escape, listing
from deltarank.results.notebook import sentences_html
from deltarank.results.ranks import PREFERRED_RANK

FINETUNE, FINETUNE_AGAIN = "finetune", "finetune again"
"""The names of the reference and of its second measurement, among candidates and answers."""


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
class Interval:
    """An estimate and its 95 % interval, bootstrapped over documents (Efron 1979); None for fewer than two."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Divergence:
    """KL divergence over the scored tokens of one text, in nats per token; `low` and `high` bound the mean."""

    mean: float
    low: float | None
    high: float | None
    median: float
    p90: float
    p95: float
    p99: float
    p999: float
    max: float


@dataclass(frozen=True)
class SliceScore:
    """The mean KLD of tokens whose position, or probability of the reference's top token, is in [first, last)."""

    first: int | float
    last: int | float
    tokens: Count
    kld: float


@dataclass(frozen=True)
class Histogram:
    """Tokens by log10 of their KLD: counts[i] are in [edges[i], edges[i + 1]); the end bins hold what is beyond."""

    edges: tuple[float, ...]
    counts: tuple[Count, ...]


@dataclass(frozen=True)
class DocumentScore:
    """The number of scored tokens of a document, and their mean KLD."""

    name: str
    tokens: Count
    kld: float


@dataclass(frozen=True)
class BlindBound:
    """The best accuracy of any judge in a blind test with replies of this length: 1/2 + TV/2, with TV bounded by KL."""

    tokens: Count
    one_reply: float
    two_replies: float


@dataclass(frozen=True)
class Logits:
    """One candidate on one text.

    text             the name of the text
    tokens           scored tokens; `documents` likewise
    same_top_p       share of tokens at which both have the same most likely token
    rms_delta_p      root mean square of q(t) - p(t) for the token t of the text; `mean_delta_p` is its mean
    ppl              exp(mean negative log-likelihood) of the candidate; `reference_ppl` the finetune's
    log_ppl_ratio    mean of log p(t) - log q(t), paired token by token
    kept             1 - kld.mean / (the base's kld.mean on this text); None if the base has none or is the reference
    tokens_to_tell   ln 20 / kld.mean: tokens until an ideal judge is 20 to 1 sure; on the finetune's own answers only
    blind            bounds on the accuracy in a blind test; on the finetune's own answers only
    not_finite       tokens left out because a logit was NaN
    """

    text: str
    tokens: Count
    documents: Count
    kld: Divergence
    kld_reverse: Divergence
    same_top_p: Interval
    rms_delta_p: Interval
    mean_delta_p: float
    ppl: float
    reference_ppl: float
    log_ppl_ratio: Interval
    kept: Interval | None = None
    tokens_to_tell: float | None = None
    blind: tuple[BlindBound, ...] = ()
    by_document: tuple[DocumentScore, ...] = ()
    by_position: tuple[SliceScore, ...] = ()
    by_confidence: tuple[SliceScore, ...] = ()
    histogram: Histogram | None = None
    not_finite: Count = 0


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
class Part:
    """The finetune with the delta of one part alone reduced to rank r.

    name             a module ("mlp.down_proj"), a layer ("layer 3") or a matrix
    kld              mean nats per token
    lost             ||D - D_r||^2 of the part; `relative_error` its root over ||D||; `share_lost` its share of the
                     sum over all parts
    low, high        bounds of `kld`, a 95 % interval over documents; None for one document
    """

    name: str
    layer: Count | None
    module: str | None
    kld: float
    lost: float
    relative_error: float
    share_lost: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class AttributionResult:
    """Which parts matter at one rank, and whether their loss in the weights predicts it.

    together           the KLD with all parts at rank r
    additivity         sum of the parts' KLD / `together`
    rank_correlation   Spearman's, of `lost` and `kld` over the parts; None for fewer than three parts
    _low, _high        bounds of the three, 95 % intervals over documents; None for one document
    """

    rank: Rank
    unit: str
    text: str
    parts: tuple[Part, ...]
    together: float
    additivity: float | None
    rank_correlation: float | None
    together_low: float | None = None
    together_high: float | None = None
    additivity_low: float | None = None
    additivity_high: float | None = None
    rank_correlation_low: float | None = None
    rank_correlation_high: float | None = None


@dataclass(frozen=True)
class Outputs(StoredResult):
    """What a run of `outputs` measured.

    reference        the finetune's name
    again            the finetune's own answers with another seed, compared with its first ones
    sentences        the verdict; the first is the headline
    """

    description = "the outputs of a deltarank run"
    cure = "Run `deltarank outputs` again."

    reference: str
    texts: tuple[Text, ...]
    candidates: tuple[CandidateResult, ...]
    again: Writing | None = None
    samples: tuple[Sample, ...] = ()
    excerpts: tuple[Excerpt, ...] = ()
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
