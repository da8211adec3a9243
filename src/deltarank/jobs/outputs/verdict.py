"""The verdict on a measurement of outputs, in sentences: the headline first, then the figures behind it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from deltarank.jobs.outputs.phrases import (
    accuracy_words,
    candidate_name,
    interval_words,
    nats,
    on_one_line,
    rounded_tokens,
    times,
)
from deltarank.results import (
    SIGNIFICANCE,
    CandidateKind,
    CandidateResult,
    Logits,
    Outputs,
    Text,
    count,
    figure,
    kept_in_words,
    listing,
    percent,
)

EQUAL_RATIO = 1.25
"""Two KLDs within this ratio are called equally close: their intervals are rarely narrower."""


def verdict_sentences(outputs: Outputs) -> tuple[str, ...]:
    """The verdict on the finetune's own answers if they were scored, else on the first text.

    Empty if nothing was scored.
    """
    texts = [on_text for text in outputs.texts if (on_text := _TextVerdict.of(outputs, text))]
    if not texts:
        return ()
    main = next((each for each in texts if each.text.own), texts[0])
    sentences = (
        *main.headline(),
        *main.divergences(),
        *main.truncation_alone(),
        *(sentence for each in texts if each is not main for sentence in each.short()),
        *main.ideal_judge(),
        *main.ranks_like_yardsticks(),
        *main.other_candidates(),
        *_writing(main.subject, outputs),
        *_attribution(outputs, main.subject),
        *main.noise_floor(),
    )
    return tuple(" ".join(each.split()) for each in sentences)


@dataclass(frozen=True)
class _TextVerdict:
    """The results on one text.

    subject     the candidate that the headline is about
    logits      by the name of the candidate
    """

    text: Text
    subject: CandidateResult
    logits: dict[str, Logits]
    candidates: tuple[CandidateResult, ...]

    @classmethod
    def of(cls, outputs: Outputs, text: Text) -> _TextVerdict | None:
        """None if no candidate that could be the subject was scored on this text."""
        logits = {each.name: on for each in outputs.candidates for on in each.logits if on.text == text.name}
        scored = tuple(each for each in outputs.candidates if each.name in logits)
        subject = outputs.headline_candidate(scored)
        return cls(text, subject, logits, scored) if subject else None

    def of_kind(self, *kinds: CandidateKind) -> list[CandidateResult]:
        return [each for each in self.candidates if each.kind in kinds]

    def kld(self, candidate: CandidateResult) -> float:
        return self.logits[candidate.name].kld.mean

    @property
    def on_text(self) -> str:
        return "on the finetune's own answers" if self.text.own else f"on {on_one_line(self.text.name)}"

    @property
    def largest_control(self) -> float:
        """The largest KLD of a control. A smaller one means nothing."""
        return max((self.kld(each) for each in self.of_kind(CandidateKind.CONTROL)), default=0.0)

    @property
    def is_distinguishable(self) -> bool:
        return self.kld(self.subject) > self.largest_control

    def headline(self) -> Iterator[str]:
        name, logits = candidate_name(self.subject), self.logits[self.subject.name]
        if not self.is_distinguishable:
            yield f"{name} is indistinguishable from the finetune {self.on_text}: the controls differ as much."
            return
        is_base = self.subject.kind is CandidateKind.BASE
        kept, yardsticks = ("", "") if is_base else (kept_in_words(logits.kept), self._beside_yardsticks())
        if yardsticks:
            yield f"{name} {yardsticks}{f', and {kept}' if kept else ''}."
        elif kept:
            yield f"{name} {kept} {self.on_text}."
        else:
            yield f"{name} diverges from the finetune by {nats(logits.kld.mean)} {self.on_text}."

    def _beside_yardsticks(self) -> str:
        """ "is as close to the finetune as q4_0": beside measured yardsticks only, nothing is extrapolated."""
        klds = sorted((kld, each.name) for each in self.of_kind(CandidateKind.YARDSTICK) if (kld := self.kld(each)) > 0)
        own = self.kld(self.subject)
        if not klds:
            return ""
        nearest, name = min(klds, key=lambda each: abs(math.log(each[0] / own)))
        if max(nearest / own, own / nearest) <= EQUAL_RATIO:
            return f"is as close to the finetune as {name}"
        closer = [each for each in klds if each[0] <= own]
        farther = [each for each in klds if each[0] > own]
        if not closer:
            return f"is closer to the finetune than {farther[0][1]}"
        kld, name = closer[-1]
        if not farther:
            return f"is farther from the finetune than {name} ({times(own / kld)} the divergence)"
        return f"is farther from the finetune than {name} and closer than {farther[0][1]}"

    def divergences(self) -> Iterator[str]:
        """The figures behind the headline."""
        kld = self.logits[self.subject.name].kld
        others = [
            f"{each.name} {figure(self.kld(each))}"
            for each in self.of_kind(CandidateKind.BASE, CandidateKind.YARDSTICK)
            if each is not self.subject
        ]
        size = f"{count(self.text.tokens, 'token')} in {count(self.text.documents, 'document')}"
        yield (
            f"The KL divergence of {candidate_name(self.subject, starts_sentence=False)} from the finetune is "
            f"{nats(kld.mean)}{interval_words(kld.low, kld.high)} {self.on_text} ({size})"
            f"{f', compared with {listing(others)}' if others else ''}."
        )

    def short(self) -> Iterator[str]:
        """On another text than the main one."""
        on_text = self.on_text[0].upper() + self.on_text[1:]
        yield f"{on_text}, {self._divergence_and_kept(self.subject, starts_sentence=False)}."

    def other_candidates(self) -> Iterator[str]:
        """Adapters and models that are not the subject."""
        for each in self.of_kind(CandidateKind.ADAPTER, CandidateKind.MODEL):
            if each is not self.subject:
                yield f"{self._divergence_and_kept(each)}."

    def _divergence_and_kept(self, candidate: CandidateResult, *, starts_sentence: bool = True) -> str:
        logits = self.logits[candidate.name]
        kept = f" and {words}" if (words := kept_in_words(logits.kept)) else ""
        name = candidate_name(candidate, starts_sentence=starts_sentence)
        return f"{name} diverges from the finetune by {nats(logits.kld.mean)}{kept}"

    def ideal_judge(self) -> Iterator[str]:
        """How soon the two can be told apart at best. Known for the finetune's own text at temperature 1 only."""
        logits, name = self.logits[self.subject.name], candidate_name(self.subject, starts_sentence=False)
        if logits.tokens_to_tell is None or not self.is_distinguishable:
            return
        yardsticks = [
            f"{each.name} after {rounded_tokens(tokens)}"
            for each in self.of_kind(CandidateKind.YARDSTICK)
            if (tokens := self.logits[each.name].tokens_to_tell)
        ]
        yield (
            f"An ideal judge with access to both models would tell {name} from the finetune, at odds of 20 to 1, after "
            f"about {rounded_tokens(logits.tokens_to_tell)} tokens sampled at temperature 1"
            f"{f' ({listing(yardsticks)})' if yardsticks else ''}."
        )
        bounds = [each for each in logits.blind if each.is_informative]
        if bounds:
            limits = [f"{percent(each.one_reply)} of replies of {each.tokens:,} tokens" for each in bounds]
            if len({percent(each.one_reply) for each in bounds}) == 1:
                limits = [f"{percent(bounds[0].one_reply)} of replies of up to {bounds[-1].tokens:,} tokens"]
            yield (
                f"In a blind test with one reply at a time, nobody can be right about more than {listing(limits)}. A "
                "higher score is luck, placebo, or due to other sampling settings."
            )

    def ranks_like_yardsticks(self) -> Iterator[str]:
        """The lowest rank that is as close to the finetune as each yardstick."""
        ranks = sorted((each.rank, self.kld(each)) for each in self.of_kind(CandidateKind.RANK) if each.rank)
        yardsticks = sorted(self.of_kind(CandidateKind.YARDSTICK), key=self.kld, reverse=True)
        if len(ranks) < 2 or not yardsticks:
            return
        found = {each.name: self._lowest_rank(each, ranks) for each in yardsticks}
        closest = [(name, rank) for name, rank in found.items() if rank]
        if closest:
            (first, rank), *others = closest
            rest = "".join(f"; as {name}, {rank}" for name, rank in others)
            yield f"The lowest measured rank that is at least as close to the finetune as {first} is {rank}{rest}."
        if farther := [name for name, rank in found.items() if not rank]:
            yield f"No measured rank is as close to the finetune as {' or '.join(farther)}."

    def _lowest_rank(self, yardstick: CandidateResult, ranks: Sequence[tuple[int, float]]) -> str:
        """ "rank 8 (1,600 times closer)"; "" if there is none."""
        limit = self.kld(yardstick)
        enough = next(((rank, kld) for rank, kld in ranks if kld <= EQUAL_RATIO * limit), None)
        if enough is None:
            return ""
        rank, kld = enough
        if kld * EQUAL_RATIO >= limit:
            return f"rank {rank} (about as close)"
        return f"rank {rank}" + (f" ({figure(limit / kld)} times closer)" if kld > 0 else "")

    def truncation_alone(self) -> Iterator[str]:
        """How much of the loss is the truncation, and how much what no LoRA carries."""
        unlimited = next((each for each in self.of_kind(CandidateKind.RANK) if each.rank is None), None)
        for each in self.of_kind(CandidateKind.TRUNCATION):
            same_rank = self.subject.kind is CandidateKind.RANK and self.subject.rank == each.rank
            if unlimited is None or not same_rank or self.kld(unlimited) <= self.largest_control:
                continue
            kld = self.logits[each.name].kld
            rest, both = figure(self.kld(unlimited)), figure(self.kld(self.subject))
            yield (
                f"Truncation to rank {each.rank} alone costs {nats(kld.mean)}{interval_words(kld.low, kld.high)}: all "
                "other tensors are the finetune's own. Leaving the other tensors the base's, as a served LoRA does, "
                f"costs {rest} alone. As served, both together cost {both}."
            )

    def noise_floor(self) -> Iterator[str]:
        controls = [
            f"{figure(self.kld(each))} ({on_one_line(each.name)})" for each in self.of_kind(CandidateKind.CONTROL)
        ]
        if controls:
            floor = f"the controls diverge from the finetune by {listing(controls)} nats per token"
            smaller = " Smaller differences mean nothing." if self.largest_control > 0 else ""
            yield f"Noise floor: {floor}.{smaller}"


def _writing(subject: CandidateResult, outputs: Outputs) -> Iterator[str]:
    writing, again = subject.writing, outputs.again
    if writing is None or writing.test is None or again is None or again.test is None:
        return
    name = candidate_name(subject, starts_sentence=False)
    could = "could" if writing.test.p_value <= SIGNIFICANCE else "could not"
    texts = f"{count(writing.prompts, 'prompt')}, {count(writing.samples, 'answer')} each"
    yield (
        f"A classifier {could} tell the answers of {name} from the finetune's ({texts}): it was right "
        f"{accuracy_words(writing.test)}. Between two runs of the finetune with different seeds it was right "
        f"{accuracy_words(again.test)}."
    )
    base = next((each.writing for each in outputs.candidates if each.kind is CandidateKind.BASE), None)
    if base is not None and outputs.tells_by_similarity:
        yield (
            f"Text similarity of {name} to the finetune (TF-IDF cosine): {figure(writing.cosine)}. A second run of the "
            f"finetune scores {figure(again.cosine)}, the base {figure(base.cosine)}."
        )


def _attribution(outputs: Outputs, subject: CandidateResult) -> Iterator[str]:
    """At the rank nearest to the headline's."""
    measured = [each for each in outputs.attribution if each.parts]
    if not measured:
        return
    nearest = min(measured, key=lambda each: abs(math.log(each.rank / (subject.rank or each.rank))))
    worst = max(nearest.parts, key=lambda part: part.kld)
    yield f"Truncating {on_one_line(worst.name)} alone to rank {nearest.rank} costs the most: {nats(worst.kld)}."
    if nearest.rank_correlation is not None:
        yield (
            f"Over {count(len(nearest.parts), nearest.unit)}, the loss in the weights and the divergence have a rank "
            f"correlation of {figure(nearest.rank_correlation)} (Spearman; 1 means the same order)."
        )
