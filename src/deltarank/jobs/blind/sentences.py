"""The score in words: the headline first, then the figures behind it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from deltarank.divergence import ALPHA, sign_flip_p_value
from deltarank.results import (
    BestPossible,
    Caught,
    Interval,
    Preferred,
    Told,
    VoterScore,
    count,
    figure,
    percent,
)

NEARLY_CERTAIN = 0.99
"""A bound from here on excludes nothing."""

CARELESS = 0.5
"""Whoever is right in no more than this share of the pairs that anybody should tell apart is named in a note."""


def score_sentences(
    voters: Sequence[VoterScore],
    together: VoterScore | None,
    best: BestPossible | None,
    reference: str,
    candidate: str,
) -> Iterator[str]:
    """Of all together, or of the only voter."""
    whole = together or voters[0]
    who = f"the {len(voters)} voters together" if together else whole.name
    if whole.told:
        yield _headline(whole.told, who, f"{candidate} from {reference}")
        yield f"Luck does as well in {_one_in(whole.told.luck)} tests. {_evidence(whole.told)}"
        yield from _bound(whole.told, best)
        yield from _best_of(voters)
    if whole.preferred:
        yield _preference(whole.preferred, reference, candidate, best)
    if not whole.told and not whole.preferred:
        yield "There are no votes on pairs of the two models yet."
    yield from _catch_pairs(whole)


def person_sentence(voter: VoterScore) -> str:
    """ "Ada: 17 of 24 right. Luck does as well in 1 of 31 tests." """
    if voter.told is None:
        return f"{voter.name}: no votes on who wrote X."
    told = voter.told
    return f"{voter.name}: {told.right} of {told.votes} right. Luck does as well in {_one_in(told.luck)} tests."


def score_notes(voters: Sequence[VoterScore], together: VoterScore | None) -> Iterator[str]:
    """What makes the votes of somebody, or of all, doubtful."""
    for voter in voters:
        if voter.sure.votes and voter.sure.right <= CARELESS * voter.sure.votes:
            yield (
                f"{voter.name} was right on {voter.sure.right} of {count(voter.sure.votes, 'pair')} that anybody "
                "should tell apart: the other answers may be careless, too"
            )
    for each in (*voters, *([together] if together else [])):
        if _luck(each.same_model) <= ALPHA / (len(voters) + 1):
            yield (
                f"{each.name}: right on {each.same_model.right} of {count(each.same_model.votes, 'pair')} that nobody "
                "can know. Somebody may have seen the key"
            )
    for voter in voters:
        if voter.votes < voter.asked:
            yield f"{voter.name} voted on {voter.votes} of {voter.asked} pairs"


def _headline(told: Told, who: str, models: str) -> str:
    right = f"{told.right} of {told.votes} right"
    if told.p_value <= ALPHA:
        return f"{who[:1].upper()}{who[1:]} can tell {models}: {right}."
    return f"{right}: this does not show that {who} can tell {models}."


def _evidence(told: Told) -> str:
    return (
        f"For voters who may stop when they like the score, the e-value is {figure(told.e_value)} "
        f"({1 / ALPHA:.0f} is needed), p = {figure(told.p_value)}. {_interval(told.share)}"
    )


def _interval(share: Interval) -> str:
    ends = f"{percent(share.low)} to {percent(share.high)}"
    return f"Right in {percent(share.value)} of pairs (95 % interval {ends})."


def _bound(told: Told, best: BestPossible | None) -> Iterator[str]:
    if best is None or best.abx is None:
        yield "What a perfect judge would reach is unknown, because the divergence of the two models is."
        return
    length = f"replies this long (about {best.tokens:.0f} tokens)"
    if best.abx >= NEARLY_CERTAIN:
        yield f"A perfect judge, who knows both models, could be right nearly always on {length}."
        return
    above = f" What is above {percent(best.abx)} is luck or leakage." if told.share.value > best.abx else ""
    yield f"A perfect judge, who knows both models, would reach at most {percent(best.abx)} on {length}.{above}"


def _best_of(voters: Sequence[VoterScore]) -> Iterator[str]:
    """The best of several people is better than one: by luck alone, too."""
    scored = [voter for voter in voters if voter.told]
    if len(scored) < 2:
        return
    best = min(scored, key=lambda voter: voter.told.luck if voter.told else 1.0)
    assert best.told is not None
    anybody = 1 - (1 - best.told.luck) ** len(scored)
    yield (
        f"The best of them is {best.name}: {best.told.right} of {best.told.votes} right. With luck alone, one of "
        f"{len(scored)} people does as well in {_one_in(anybody)} tests."
    )


def _preference(preferred: Preferred, reference: str, candidate: str, best: BestPossible | None) -> str:
    counts = f"{count(preferred.reference, 'time')} {reference}, {count(preferred.candidate, 'time')} {candidate}"
    equal = f", {count(preferred.equal, 'time')} neither" if preferred.equal else ""
    if preferred.p_value <= ALPHA:
        better = reference if preferred.share.value > 0.5 else candidate
        verdict = f"{better} is liked better"
    else:
        verdict = "this does not show that either is liked better"
    share = max(preferred.share.value, 1 - preferred.share.value)
    too_much = best and best.preference is not None and share > best.preference
    above = f" A preference above {percent(best.preference)} is luck or leakage." if best and too_much else ""
    return (
        f"Liked better: {counts}{equal}; {verdict} (e-value {figure(preferred.e_value)}, "
        f"p = {figure(preferred.p_value)}).{above}"
    )


def _catch_pairs(voter: VoterScore) -> Iterator[str]:
    if voter.sure.votes:
        yield f"On pairs that anybody should tell apart: {voter.sure.right} of {voter.sure.votes} right."
    if voter.same_model.votes:
        half = figure(voter.same_model.votes / 2)
        yield (
            f"On pairs of one model twice, which nobody can know: {voter.same_model.right} of "
            f"{voter.same_model.votes} right; luck gets {half}."
        )


def _luck(caught: Caught) -> float:
    """The probability of as many right answers by luck."""
    return sign_flip_p_value([1] * caught.right + [-1] * (caught.votes - caught.right))


def _one_in(probability: float) -> str:
    """0.032 -> "1 of 31"; 0.6 -> "60 % of": how many tests."""
    if probability > 0.5:
        return f"{percent(probability)} of"
    times = 1 / probability if probability > 0 else float("inf")
    return f"1 of {times:,.0f}" if times < 1e6 else "fewer than 1 of 1,000,000"
