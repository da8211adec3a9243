"""Figures and names as the sentences of a verdict on outputs have them."""

from __future__ import annotations

from deltarank.results import CandidateKind, CandidateResult, TwoSampleTest, figure, percent


def nats(kld: float) -> str:
    return f"{figure(kld)} nats per token"


def interval_words(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f" (95 % interval {figure(low)} to {figure(high)})"


def rounded_tokens(number: float) -> str:
    return figure(max(round(number), 1))


def times(ratio: float) -> str:
    return "twice" if 1.9 <= ratio <= 2.1 else f"{figure(ratio)} times"


def candidate_name(candidate: CandidateResult, *, starts_sentence: bool = True) -> str:
    nouns = {CandidateKind.ADAPTER: "adapter ", CandidateKind.MODEL: "model ", CandidateKind.BASE: ""}
    name, noun = on_one_line(candidate.name), nouns.get(candidate.kind)
    if noun is not None:
        name = f"the {noun}{name.removeprefix(noun)}"
    return name[:1].upper() + name[1:] if starts_sentence else name


def on_one_line(name: str, most: int = 60) -> str:
    """A name on one line, without control characters: it comes from a file and may hold anything."""
    line = " ".join("".join(each if each.isprintable() else " " for each in name).split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def accuracy_words(test: TwoSampleTest) -> str:
    return f"{percent(test.accuracy)} of the time (p = {figure(test.p_value)})"
