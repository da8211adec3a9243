"""How a calibrated adapter was fitted, and how far it is from the finetune on texts that it was not fitted to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from deltarank.results.codec import Count, Rank
from deltarank.results.formatting import count, figure, percent


class CalibrationMethod(StrEnum):
    """Which of the adapters was written.

    PLAIN           truncated SVD of the delta (Eckart and Young 1936): it was at least as good on the texts that chose
    KL_DISTILLATION the factors of plain extraction, then gradient descent on the KL divergence from the finetune
                    (Hinton et al. 2015)
    """

    PLAIN = "plain"
    KL_DISTILLATION = "kl_distillation"


class WeightPlacement(StrEnum):
    """Where the weights of a model are while it runs in a calibration.

    WHOLE       in float32 in memory, with the activations of all layers
    RECOMPUTED  in float32 in memory; every layer runs twice, with the activations of one layer in memory
    STORED      as RECOMPUTED, but in memory in the stored dtype; one layer is in float32
    STREAMED    as STORED, but every pass reads the files
    """

    WHOLE = "whole"
    RECOMPUTED = "recomputed"
    STORED = "stored"
    STREAMED = "streamed"

    @property
    def plan(self) -> str:
        """A sentence on what will be done."""
        return _PLANS[self]

    @property
    def report(self) -> str:
        """A sentence on what was done."""
        return f"While it was fitted, {_REPORTS[self]}"

    @property
    def tokens_at_once(self) -> int:
        """Read together, with a gradient. With one layer in memory, they are all of a step."""
        return 512 if self is WeightPlacement.WHOLE else 1536

    @property
    def converts(self) -> bool:
        """Whether a layer's weights are made when the layer runs."""
        return self in (WeightPlacement.STORED, WeightPlacement.STREAMED)


_ONE_AFTER_THE_OTHER = "The base and the finetune are in memory one after the other, in"
_TWICE = "Each layer runs twice in a step, so that the activations of one are in memory."

_PLANS = {
    WeightPlacement.WHOLE: f"{_ONE_AFTER_THE_OTHER} float32.",
    WeightPlacement.RECOMPUTED: f"{_ONE_AFTER_THE_OTHER} float32. {_TWICE}",
    WeightPlacement.STORED: f"{_ONE_AFTER_THE_OTHER} the dtype of their files; one layer is in float32. {_TWICE}",
    WeightPlacement.STREAMED: f"The models do not fit into memory: each pass reads the files, layer by layer. {_TWICE}",
}

_RAN_TWICE = "each layer ran twice in a step to save memory, which changes the gradients by rounding only."
_REPORTS = {
    WeightPlacement.WHOLE: "the weights were in memory in float32.",
    WeightPlacement.RECOMPUTED: f"the weights were in memory in float32, and {_RAN_TWICE}",
    WeightPlacement.STORED: f"the weights were in memory in the dtype of their files, and {_RAN_TWICE}",
    WeightPlacement.STREAMED: f"the weights were read from the files, layer by layer, and {_RAN_TWICE}",
}


@dataclass(frozen=True)
class CalibrationScore:
    """Mean KL divergences from the finetune, in nats per token, on documents that neither fitted nor chose.

    documents       how many, and `tokens` how many of their tokens were scored
    groups          of documents: answers to one prompt, and parts of one text, are one
    kld_base        of the base alone
    kld_plain       of plain extraction at the same rank, as written
    kld_any_rank    of the whole delta in the matrices that a LoRA has factors for: plain extraction at any rank; None
                    where the adapter has not those matrices alone, for which that was not measured
    kld_calibrated  of the adapter that was written
    low, high       the 95 % interval of `kld_calibrated`, bootstrapped over groups; None for one
    same_top_plain, same_top_calibrated  share of tokens at which the adapter and the finetune have the same most likely
                    token
    gain            1 - kld_calibrated / kld_plain; None if `kld_plain` is 0
    gain_low, gain_high  its 95 % interval
    """

    documents: Count
    groups: Count
    tokens: Count
    kld_base: float
    kld_plain: float
    kld_any_rank: float | None
    kld_calibrated: float
    low: float | None
    high: float | None
    same_top_plain: float
    same_top_calibrated: float
    gain: float | None
    gain_low: float | None
    gain_high: float | None

    @property
    def distances(self) -> str:
        """As in "plain extraction at this rank 0.059, plain extraction at any rank 0.034; base 0.83"."""
        any_rank = "" if self.kld_any_rank is None else f", plain extraction at any rank {figure(self.kld_any_rank)}"
        return f"plain extraction at this rank {figure(self.kld_plain)}{any_rank}; base {figure(self.kld_base)}"

    @property
    def documents_in_words(self) -> str:
        """As in "48 documents in 16 groups"; groups are not mentioned where each document is one."""
        groups = f" in {count(self.groups, 'group')}" if self.has_groups else ""
        return f"{count(self.documents, 'document')}{groups}"

    @property
    def has_groups(self) -> bool:
        return self.groups < self.documents

    @property
    def interval(self) -> str:
        """That of `kld_calibrated`, as in "0.0624 to 0.113"; "" if it is not known."""
        return "" if self.low is None else f"{figure(self.low)} to {figure(self.high)}"

    @property
    def gain_in_words(self) -> str:
        """As in "66 % below plain extraction at this rank (95 % interval 56 to 74 %)"; "" without a difference."""
        if not self.gain:
            return ""
        sign, word = (1, "below") if self.gain > 0 else (-1, "above")
        interval = f" (95 % interval {ends})" if (ends := self.gain_interval(sign)) else ""
        return f"{percent(sign * self.gain)} {word} plain extraction at this rank{interval}"

    def gain_interval(self, sign: int = 1) -> str:
        """That of `sign * gain`, as in "56 to 74 %"; "" if it is not known."""
        if self.gain_low is None or self.gain_high is None:
            return ""
        low, high = sorted((sign * self.gain_low, sign * self.gain_high))
        return f"{percent(low).removesuffix(' %')} to {percent(high)}"

    @property
    def is_worse(self) -> bool:
        """Whether calibrated is worse than plain, beyond the interval."""
        return self.gain_high is not None and self.gain_high < 0

    @property
    def nearer(self) -> Iterator[tuple[str, float]]:
        """What is nearer to the finetune than the adapter, and its divergence: plain extraction, beyond the interval;
        the base."""
        if self.is_worse:
            yield "plain extraction", self.kld_plain
        if self.kld_base < self.kld_calibrated:
            yield "the base without an adapter", self.kld_base


@dataclass(frozen=True)
class Calibration:
    """How an adapter was calibrated; `calibration` in deltarank.json.

    texts            what it was fitted to: paths, or "own" for the finetune's own answers
    tokens           that the fitted documents have
    method           which adapter was written
    steps            of gradient descent of the adapter that was written; 0: plain
    steps_made       of gradient descent in all
    placement        where the weights were while the factors were fitted; of an interrupted calibration, at its end
    frozen           factors of experts that PEFT holds fused: they stay those of plain extraction
    ridge            of a closed form; None: none was used
    seed             of the split of the documents, their order, and the sampled answers
    fitted, chosen   how many documents fitted, and how many chose the step
    held_out         on documents of the same texts that did neither
    other_text       on text of another kind: built-in passages
    rank_equivalent  the smallest measured rank of plain extraction that is as near on the held-out documents. None if
                     none is, or if the whole delta is farther: then no rank is measured; or if it was not measured
    """

    texts: tuple[str, ...]
    tokens: Count
    method: CalibrationMethod
    steps: Count
    steps_made: Count
    placement: WeightPlacement
    frozen: Count
    ridge: float | None
    seed: Count
    fitted: Count
    chosen: Count
    held_out: CalibrationScore
    other_text: CalibrationScore
    rank_equivalent: Rank | None

    @property
    def distances(self) -> str:
        """As in "0.021 nats per token from the finetune, on ...; plain extraction at this rank 0.059, ..."."""
        held = self.held_out
        return (
            f"{figure(held.kld_calibrated)} nats per token from the finetune, on text that it was not fitted to; "
            f"{held.distances}."
        )

    @property
    def scores(self) -> tuple[str, ...]:
        """The distances, how sure they are, and those on another kind of text."""
        held, other = self.held_out, self.other_text
        of_held = f"That is on {held.documents_in_words}{_interval_words(held)}"
        on_other = f"On another kind of text ({other.documents_in_words}, built-in passages): "
        of_other = f"{on_other}{figure(other.kld_calibrated)}{_interval_words(other)}; {other.distances}"
        return (
            self.distances,
            f"{': '.join(filter(None, [of_held, held.gain_in_words]))}.",
            f"{'. That is '.join(filter(None, [of_other, other.gain_in_words]))}.",
        )

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a reader of the distances should know."""
        if self.method is CalibrationMethod.PLAIN:
            return (*self.warnings, _NOTHING_BETTER if self.steps_made else _NO_STEP)
        frozen = (frozen_sentence(self.frozen),) if self.frozen else ()
        return (*self.warnings, *frozen, _FITTED_TO_PREDICTIONS, self.placement.report)

    @property
    def sentences(self) -> tuple[str, ...]:
        """What a reader should know, the distances first."""
        return (*self.scores, *self.remarks)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Where it is worse than plain extraction, beyond the interval, or worse than the base without an adapter."""
        scores = (("the same kind", self.held_out), ("another kind", self.other_text))
        return tuple(
            f"On text of {kind}, it is farther from the finetune than {other}: "
            f"{figure(score.kld_calibrated)} against {figure(kld)} nats per token."
            for kind, score in scores
            for other, kld in score.nearer
        )


def _interval_words(score: CalibrationScore) -> str:
    return f" (95 % interval {score.interval})" if score.interval else ""


def frozen_sentence(factors: int) -> str:
    return (
        f"{count(factors, 'factor')} of experts stay as plain extraction made them, because PEFT holds them fused; all "
        "others are fitted."
    )


_NOTHING_BETTER = "Calibration found nothing better than plain extraction, which is what was written."
_NO_STEP = "No step of gradient descent was made: plain extraction is what was written."

_FITTED_TO_PREDICTIONS = (
    "Its factors were fitted to the finetune's predictions, not to its weights. Of the change in the weights, plain "
    "extraction keeps the most that this rank can."
)
