"""Which candidate is the base, decided from the distances, and said in a sentence."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence, Set
from dataclasses import replace

from deltarank.jobs.compare import RELATED, UNRELATED
from deltarank.results import BaseKind, CandidateBase, count, figure, listing, percent

CLEARLY = 1.05
"""If the next nearest is farther by this factor or more, the distance over the whole sample decides."""

AS_NEAR = 1.5
"""If the next nearest is farther by a smaller factor, it may be a sibling of the base or of the finetune."""

EQUAL = 1.001
"""Two norms within this factor count as equal: rounding changes them as much."""

ENOUGH_WINS = 6
"""Nearer in this many matrices and farther in none: by chance alone, this happens once in 32 times."""


def without_unlike(candidates: Sequence[CandidateBase]) -> tuple[list[CandidateBase], str]:
    """The candidates without the matrices that differ from those of every candidate as unrelated ones do, where others
    are related to one; and a sentence on what was left out, "" if nothing was.

    Layers that were inserted, removed or moved would decide by chance which candidate is nearest.
    """
    compared = [each for each in candidates if each.relative_norm is not None]
    nearest: dict[str, float] = {}
    for name, norm in (item for each in compared for item in each.norms.items()):
        nearest[name] = min(norm, nearest.get(name, math.inf))
    unlike = {name for name, norm in nearest.items() if norm >= UNRELATED}
    if not unlike or all(norm > RELATED for norm in nearest.values()):
        return list(candidates), ""
    sentence = (
        f" {len(unlike):,} of {count(len(nearest), 'random matrix', 'random matrices')} "
        f"{'differs' if len(unlike) == 1 else 'differ'} from those of every candidate as unrelated ones do, and "
        f"{'is' if len(unlike) == 1 else 'are'} not counted: layers were inserted, removed or moved, or trained from "
        "scratch, or matrices are stored in another order."
    )
    return [_without(each, unlike) for each in candidates], sentence


def _without(candidate: CandidateBase, unlike: Set[str]) -> CandidateBase:
    """The root of the mean of the squares over the other matrices, as if all were of equal size."""
    norms = {name: norm for name, norm in candidate.norms.items() if name not in unlike}
    if candidate.relative_norm is None or not norms:
        return candidate
    mean = math.fsum(norm**2 for norm in norms.values()) / len(norms)
    return replace(candidate, norms=norms, relative_norm=math.sqrt(mean))


def decide(
    candidates: Sequence[CandidateBase], name: str, is_alike: Callable[[CandidateBase], bool]
) -> tuple[BaseKind, str]:
    """The kind of answer and the sentence.

    Args:
        name: what a reader calls the finetune.
        is_alike: whether the weights of a candidate that is far away are like the finetune's.
    """
    comparable = [each for each in candidates if each.relative_norm is not None]
    if not comparable:
        return BaseKind.NONE, f"The sample cannot tell which of these is the base of {name}."
    nearest, *others = sorted(comparable, key=lambda each: each.distance)
    sample = count(len(nearest.norms), "random matrix", "random matrices")
    is_far = nearest.distance >= UNRELATED
    if is_far and not is_alike(nearest):
        unknown = len(candidates) - len(comparable)
        return BaseKind.NONE, _none_sentence(nearest, name, sample, is_alone=len(comparable) == 1, unknown=unknown)
    close = [other for other in others if not _is_nearer(nearest, other)]
    if close:
        return BaseKind.TOO_CLOSE, _close_sentence([nearest, *close], name, sample)
    far = " Though the difference is large, their weights are alike, which those of unrelated models are not."
    return BaseKind.FOUND, _found_sentence(nearest, others, name, sample) + (far if is_far else "")


def _is_nearer(one: CandidateBase, other: CandidateBase) -> bool:
    """By a clear margin over the sample, or by a small one in matrix after matrix."""
    both = [(norm, other.norms[name]) for name, norm in one.norms.items() if name in other.norms]
    wins = sum(theirs > EQUAL * ours for ours, theirs in both)
    losses = sum(ours > EQUAL * theirs for ours, theirs in both)
    if other.distance > CLEARLY * one.distance:
        return wins > losses
    return wins >= ENOUGH_WINS and not losses


def _found_sentence(nearest: CandidateBase, others: Sequence[CandidateBase], name: str, sample: str) -> str:
    by = f"by {percent(nearest.relative_norm)} of the base's norm in {sample}{nearest.unpaired.remark()}"
    if not others:
        return (
            f"{name} differs from {nearest.reference.ref} {by}. A finetune differs so from its base, and from other "
            "finetunes of this base."
        )
    sentence = f"{name} is nearest to {nearest.reference.ref}: they differ {by}."
    return f"{sentence} {_margin(nearest, others[0])}"


def _margin(nearest: CandidateBase, next_one: CandidateBase) -> str:
    ref = next_one.reference.ref
    times = next_one.distance / nearest.distance if nearest.distance > 0 else math.inf
    by = f"by {percent(next_one.relative_norm)}"
    if times >= AS_NEAR:
        return f"The next candidate, {ref}, differs {by}" + (
            f", {figure(times)} times as much." if times < math.inf else "."
        )
    return (
        f"The next candidate, {ref}, is nearly as near: it differs {by}, {figure(times)} times as much. A finetune is "
        "about as near to siblings and to later stages of its base: check which of the two is older."
    )


def _none_sentence(nearest: CandidateBase, name: str, sample: str, *, is_alone: bool, unknown: int) -> str:
    ref = nearest.reference.ref
    sampled = f"{sample}{nearest.unpaired.remark()}"
    differ = f"by {percent(nearest.relative_norm)} of the base's norm in {sampled}, as unrelated models do"
    if is_alone:
        return f"{ref} is not the base of {name}: they differ {differ}."
    those = "the candidates that could be compared" if unknown else "these"
    return f"None of {those} is the base of {name}: even the nearest, {ref}, differs {differ}."


def _close_sentence(close: Sequence[CandidateBase], name: str, sample: str) -> str:
    names = listing([each.reference.ref for each in close], most=4)
    sample = f"{sample}{close[0].unpaired.remark()}"
    if all(each.norms == close[0].norms for each in close):
        return (
            f"Too close to tell: {name} differs from {names} by exactly the same ({_range(close)} of the base's "
            f"norm, in {sample}), as it does from copies of one model. Any of them serves as the base."
        )
    return (
        f"Too close to tell: {name} differs from {names} by about the same ({_range(close)} of the base's norm, in "
        f"{sample}). A merge is equally near to each of its parts."
    )


def _range(close: Sequence[CandidateBase]) -> str:
    low, high = (percent(pick(each.distance for each in close)) for pick in (min, max))
    return low if low == high else f"{low} to {high}"
