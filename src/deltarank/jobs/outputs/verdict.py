"""What a run of outputs found, in sentences: the headline first, each figure with what it is measured by."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from deltarank.results import (
    PREFERRED_RANK,
    CandidateKind,
    CandidateResult,
    Interval,
    Logits,
    Outputs,
    Text,
    TwoSampleTest,
    Writing,
    count,
    figure,
    listing,
    percent,
)

AS_FAR = 1.25
"""Two KLDs within this ratio are said to be equal: intervals are rarely narrower."""

RULED_OUT = 0.99
"""A blind bound from here on rules no score out that anyone reports."""

LEAST_SHARE = 0.005
LEVEL = 0.05


def sentences_of(outputs: Outputs) -> tuple[str, ...]:
    """The verdict, on the finetune's own answers where they were scored, else on the first text.

    Empty where nothing was scored.
    """
    made = [found for text in outputs.texts if (found := _Found.on(outputs, text))]
    if not made:
        return ()
    main = next((each for each in made if each.text.own), made[0])
    parts = (
        *main.headline(),
        *main.distances(),
        *main.beyond_any_rank(),
        *(sentence for each in made if each is not main for sentence in each.beside()),
        *main.judge(),
        *main.reached(),
        *main.others(),
        *_writings(main.subject, outputs.again),
        *_attributions(outputs, main.subject),
        *main.floor(),
    )
    return tuple(" ".join(each.split()) for each in parts)


@dataclass(frozen=True)
class _Found:
    """What was found on one text. `subject` is whom the headline is about."""

    text: Text
    subject: CandidateResult
    logits: dict[str, Logits]
    candidates: tuple[CandidateResult, ...]

    @classmethod
    def on(cls, outputs: Outputs, text: Text) -> _Found | None:
        """None where no candidate was scored on it that could be a subject."""
        logits = {each.name: on for each in outputs.candidates for on in each.logits if on.text == text.name}
        scored = tuple(each for each in outputs.candidates if each.name in logits)
        subject = _subject(outputs, scored)
        return cls(text, subject, logits, scored) if subject else None

    def of(self, *kinds: CandidateKind) -> list[CandidateResult]:
        return [each for each in self.candidates if each.kind in kinds]

    def kld(self, candidate: CandidateResult) -> float:
        return self.logits[candidate.name].kld.mean

    @property
    def where(self) -> str:
        return "on the finetune's own answers" if self.text.own else f"on {_short(self.text.name)}"

    @property
    def rounding(self) -> float:
        """The largest KLD of a control: what is under it says nothing."""
        return max((self.kld(each) for each in self.of(CandidateKind.CONTROL)), default=0.0)

    def headline(self) -> Iterator[str]:
        name, mine = _name(self.subject), self.logits[self.subject.name]
        kept = _kept(mine.kept)
        if self.kld(self.subject) <= self.rounding:
            yield f"{name} cannot be told from the finetune {self.where}: it is as near as the control."
        elif self.subject.kind is CandidateKind.BASE:
            yield f"{name} is {figure(mine.kld.mean)} nats per token from the finetune {self.where}."
        elif beside := self._beside_yardsticks():
            yield f"{name} {beside}{f', and {kept}' if kept else ''}."
        else:
            yield f"{name} {kept or f'is {figure(mine.kld.mean)} nats per token from the finetune'} {self.where}."

    def _beside_yardsticks(self) -> str:
        """ "is as far from the finetune as q4_0 is": between measured ones only, nothing is extrapolated."""
        known = sorted((self.kld(each), each.name) for each in self.of(CandidateKind.YARDSTICK) if self.kld(each) > 0)
        mine = self.kld(self.subject)
        if not known:
            return ""
        nearest, name = min(known, key=lambda each: abs(math.log(each[0] / mine)))
        if max(nearest / mine, mine / nearest) <= AS_FAR:
            return f"is as far from the finetune as {name} is"
        nearer, farther = ([each for each in known if (each[0] > mine) is beyond] for beyond in (False, True))
        if not nearer:
            return f"is nearer to the finetune than {farther[0][1]} is"
        if not farther:
            return f"is farther from the finetune than {nearer[-1][1]} is, {_times(mine / nearer[-1][0])} as far"
        return f"is farther from the finetune than {nearer[-1][1]} is and nearer than {farther[0][1]}"

    def distances(self) -> Iterator[str]:
        """The figures behind the headline."""
        mine = self.logits[self.subject.name].kld
        others = [
            f"{each.name} {figure(self.kld(each))}"
            for each in self.of(CandidateKind.BASE, CandidateKind.YARDSTICK)
            if each is not self.subject
        ]
        size = f"{count(self.text.tokens, 'token')} of {count(self.text.documents, 'document')}"
        beside = f", beside {listing(others)}" if others else ""
        far = _interval(mine.mean, mine.low, mine.high)
        yield f"{_name(self.subject)} is {far} nats per token away {self.where} ({size}){beside}."

    def beside(self) -> Iterator[str]:
        """On another text than the main one."""
        mine = self.logits[self.subject.name]
        kept = f", and {words}" if (words := _kept(mine.kept)) else ""
        yield f"{self.where[0].upper()}{self.where[1:]} it is {figure(mine.kld.mean)} nats per token away{kept}."

    def judge(self) -> Iterator[str]:
        """How soon it could be told, and what cannot be: on the finetune's own text at temperature 1."""
        mine = self.logits[self.subject.name]
        if mine.tokens_to_tell is None or self.kld(self.subject) <= self.rounding:
            return
        beside = [
            f"{each.name} after {_tokens(told)}"
            for each in self.of(CandidateKind.YARDSTICK)
            if (told := self.logits[each.name].tokens_to_tell)
        ]
        yield (
            f"An ideal judge who has both models would tell {_name(self.subject, inside=True)} from the finetune, at "
            f"odds of 20 to 1, after about {_tokens(mine.tokens_to_tell)} tokens sampled at temperature 1"
            f"{f' ({listing(beside)})' if beside else ''}."
        )
        bounds = [each for each in mine.blind if each.one_reply < RULED_OUT]
        if bounds:
            most = [f"{percent(each.one_reply)} of replies of {each.tokens:,} tokens" for each in bounds]
            yield (
                f"Blind, no one can be right about more than {listing(most)}, shown one reply at a time: a higher "
                "score is placebo, luck, or comes from other settings."
            )
        elif mine.blind:
            yield f"No blind score is ruled out: a reply of {mine.blind[0].tokens:,} tokens may be enough to tell."

    def reached(self) -> Iterator[str]:
        """Which rank is as near as each yardstick."""
        ranks = sorted((each.rank, self.kld(each)) for each in self.of(CandidateKind.RANK) if each.rank)
        if len(ranks) < 2:
            return
        reached: dict[int | None, list[str]] = {}
        for each in sorted(self.of(CandidateKind.YARDSTICK), key=self.kld, reverse=True):
            enough = next((rank for rank, kld in ranks if kld <= AS_FAR * self.kld(each)), None)
            reached.setdefault(enough, []).append(each.name)
        said = [
            f"{f'rank {rank}' if rank else 'none'} is as near as {listing(names)}" for rank, names in reached.items()
        ]
        if said:
            yield f"Of the ranks that were tried, {'; '.join(said)}."

    def beyond_any_rank(self) -> Iterator[str]:
        """What no LoRA reaches: norms, embeddings and what else stays the base's."""
        whole = next((each for each in self.of(CandidateKind.RANK) if each.rank is None), None)
        if whole is None or self.kld(whole) <= self.rounding:
            return
        kept = self.logits[whole.name].kept
        if kept is not None and 1 - kept.value >= LEAST_SHARE:
            is_most = self.subject.kind is CandidateKind.RANK and self.kld(whole) > self.kld(self.subject) / 2
            lead = "Most of that is not the rank's doing" if is_most else "No rank is enough for all of it"
            yield (
                f"{lead}: with the whole change of the matrices, and norms, biases, embeddings and output head left to "
                f"the base, {percent(kept.value)} is kept."
            )

    def others(self) -> Iterator[str]:
        """Adapters and models that the headline is not about."""
        for each in self.of(CandidateKind.ADAPTER, CandidateKind.MODEL):
            if each is not self.subject:
                mine = self.logits[each.name]
                kept = f", and {words}" if (words := _kept(mine.kept)) else ""
                yield f"{_name(each)} is {figure(mine.kld.mean)} nats per token away{kept}."

    def floor(self) -> Iterator[str]:
        read = [f"{_short(each.name)} {figure(self.kld(each))}" for each in self.of(CandidateKind.CONTROL)]
        if read:
            yield f"Controls read {listing(read)} nats per token: a smaller difference says nothing."


def _subject(outputs: Outputs, scored: tuple[CandidateResult, ...]) -> CandidateResult | None:
    """The headline's rank, or the one nearest to 64, or the first adapter, model, or the base."""
    ranks = [each for each in scored if each.kind is CandidateKind.RANK and each.rank]
    if ranks:
        wished = outputs.settings.get("headline_rank") or PREFERRED_RANK
        return min(ranks, key=lambda each: abs(math.log((each.rank or 1) / wished)))
    order = (CandidateKind.ADAPTER, CandidateKind.MODEL, CandidateKind.BASE)
    return next((each for kind in order for each in scored if each.kind is kind), None)


def _writings(subject: CandidateResult, again: Writing | None) -> Iterator[str]:
    mine = subject.writing
    if mine is None or mine.test is None or again is None or again.test is None:
        return
    told = "tells" if mine.test.p_value <= LEVEL else "does not tell"
    texts = f"{count(mine.prompts, 'prompt')}, {count(mine.samples, 'answer')} to each"
    yield (
        f"By its texts a classifier {told} {_name(subject, inside=True)} from the finetune ({texts}): it is right "
        f"about {_tested(mine.test)}; about the finetune's own with another seed: {_tested(again.test)}."
    )
    yield (
        f"Its answers are like the finetune's to {figure(mine.cosine)} (TF-IDF cosine), the finetune's own with "
        f"another seed to {figure(again.cosine)}."
    )


def _tested(test: TwoSampleTest) -> str:
    return f"{percent(test.accuracy)} (p = {figure(test.p_value)})"


def _attributions(outputs: Outputs, subject: CandidateResult) -> Iterator[str]:
    """At the rank nearest to the headline's."""
    known = [each for each in outputs.attribution if each.parts]
    if not known:
        return
    near = min(known, key=lambda each: abs(math.log(each.rank / (subject.rank or each.rank))))
    worst = max(near.parts, key=lambda part: part.kld)
    yield f"At rank {near.rank}, {_short(worst.name)} alone costs the most: {figure(worst.kld)} nats per token."
    if near.rank_correlation is not None:
        order = f"{figure(near.rank_correlation)} (Spearman; 1 is the same order)"
        yield f"The loss in the weights puts the {len(near.parts)} parts in the order of their KLD to {order}."


def _kept(kept: Interval | None) -> str:
    """ "keeps 89 % of the finetune's behaviour (95 % interval 87 to 91 %)"."""
    if kept is None:
        return ""
    if kept.value < 0:
        return "is farther from the finetune than the base is"
    ends = [percent(end) for end in (kept.low, kept.high) if end is not None]
    tells = len(ends) == 2 and not all(end.startswith("over") for end in ends)  # "over 99.9 to over 99.9 %"
    interval = f" (95 % interval {ends[0].removesuffix(' %')} to {ends[1]})" if tells else ""
    return f"keeps {percent(kept.value)} of the finetune's behaviour{interval}"


def _interval(value: float, low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return figure(value)
    return f"{figure(value)} (95 % interval {figure(low)} to {figure(high)})"


def _tokens(number: float) -> str:
    return figure(max(round(number), 1))


def _times(ratio: float) -> str:
    return "twice" if 1.9 <= ratio <= 2.1 else f"{figure(ratio)} times"


def _name(candidate: CandidateResult, *, inside: bool = False) -> str:
    kind = {CandidateKind.ADAPTER: "the adapter ", CandidateKind.MODEL: "the model ", CandidateKind.BASE: "the "}
    name = f"{kind.get(candidate.kind, '')}{_short(candidate.name)}"
    return name if inside else name[:1].upper() + name[1:]


def _short(name: str, most: int = 60) -> str:
    """A name on one line: it comes from a file, and may hold anything."""
    plain = " ".join("".join(each if each.isprintable() else " " for each in name).split())
    return plain if len(plain) <= most else f"{plain[: most - 1]}…"
