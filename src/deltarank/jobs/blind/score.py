"""The score of a test: of each person, and of all together.

One person's votes are on different pairs, whose answers were dealt by independent coins: if the models write alike,
each ABX vote is right with probability 1/2 given those before, whatever its voter does. Votes of several people on one
pair are not independent: if X happens to resemble A, it does so for all of them. So all together count pair by pair,
with the share of people who were right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean
from typing import Protocol

from numpy import float64
from numpy.typing import NDArray
from scipy.special import logsumexp

from deltarank.divergence import confidence_interval, log_e_values, log_e_values_two_sided, sign_flip_p_value
from deltarank.jobs.blind.power import best_possible
from deltarank.jobs.blind.sentences import score_notes, score_sentences
from deltarank.jobs.blind.votes import CastVote, VotedBallot
from deltarank.results import (
    BlindKey,
    BlindScore,
    Caught,
    PairKind,
    Preferred,
    Question,
    Role,
    Told,
    VoterScore,
    escape,
    shorten,
)
from deltarank.system import tool_version

_LARGEST_E = 1e300
GUESS = 1
MOST_NAME = 40


def score_votes(key: BlindKey, key_sha256: str, ballots: Sequence[VotedBallot], created: str) -> BlindScore:
    """The score of these ballots, which are in the order in which people began."""
    names = _names(ballots)
    voters = tuple(_of_person(key, ballot, name) for ballot, name in zip(ballots, names, strict=True))
    together = _of_all(key, ballots) if len(ballots) > 1 else None
    reference, candidate = (shorten(escape(key.models[role])) for role in (Role.REFERENCE, Role.CANDIDATE))
    best = best_possible(key)
    return BlindScore(
        test=key.test,
        key_sha256=key_sha256,
        reference=reference,
        candidate=candidate,
        voters=voters,
        together=together,
        best=best,
        sentences=tuple(score_sentences(voters, together, best, reference, candidate)),
        notes=tuple(score_notes(voters, together)),
        created=created,
        tool_version=tool_version(),
    )


def _names(ballots: Sequence[VotedBallot]) -> list[str]:
    """What the voters called themselves, or "voter 3"; equal names are numbered."""
    given = [shorten(escape(" ".join(each.name.split())), most=MOST_NAME) for each in ballots]
    names = [name or f"voter {i}" for i, name in enumerate(given, start=1)]
    return [f"{name} ({names[:i].count(name) + 1})" if names.count(name) > 1 else name for i, name in enumerate(names)]


def _of_person(key: BlindKey, ballot: VotedBallot, name: str) -> VoterScore:
    tests, preferences = list(ballot.of(Question.ABX)), list(ballot.of(Question.PREFERENCE))
    return VoterScore(
        name=name,
        voter=ballot.voter,
        asked=len(key.pairs),
        votes=len(ballot.votes),
        told=_told([[vote] for vote in tests], _person(log_e_values), _person(log_e_values_two_sided)),
        preferred=_preferred([[vote] for vote in preferences], _person(log_e_values_two_sided)),
        sure=_caught([ballot], PairKind.SURE),
        same_model=_caught([ballot], PairKind.SAME_MODEL),
        guesses=_guesses(tests),
    )


def _of_all(key: BlindKey, ballots: Sequence[VotedBallot]) -> VoterScore:
    tests, preferences = ([list(each.of(question)) for each in ballots] for question in Question)
    people = _weights(len(ballots), key.people)
    return VoterScore(
        name="together",
        voter="",
        asked=len(key.pairs) * len(ballots),
        votes=sum(len(ballot.votes) for ballot in ballots),
        told=_told(_by_pair(tests), *(_of_people(e, tests, people) for e in (log_e_values, log_e_values_two_sided))),
        preferred=_preferred(_by_pair(preferences), _of_people(log_e_values_two_sided, preferences, people)),
        sure=_caught(ballots, PairKind.SURE),
        same_model=_caught(ballots, PairKind.SAME_MODEL),
        guesses=_guesses(vote for votes in tests for vote in votes),
    )


# ---- e-values over one person's votes, and over people ----------------------------------------------------------


class Process(Protocol):
    """From scores and their expectation under chance: the log of the e-value after each, or after the last."""

    def __call__(self, scores: Sequence[float], chance: float, *, last_only: bool = False) -> NDArray[float64]: ...


Evidence = Callable[[Sequence[Sequence[CastVote]], float], tuple[float, float]]
"""From the votes on each pair and an expectation: the log of the e-value, and of the largest one so far."""


def _person(process: Process) -> Evidence:
    """After each vote of one person."""

    def evidence(votes: Sequence[Sequence[CastVote]], expected: float) -> tuple[float, float]:
        log_e = process([_score(vote) for [vote] in votes], expected)
        return float(log_e[-1]), float(log_e.max())

    return evidence


def _of_people(process: Process, by_person: Sequence[Sequence[CastVote]], log_weights: Sequence[float]) -> Evidence:
    """Of the first, the first two, ... people, added with weights that sum to less than 1.

    Each term has expectation 1 at most under chance, so the sum may be looked at after every person. It never falls.
    """
    prefixes = [_scores(_by_pair(by_person[:n])) for n in range(1, len(by_person) + 1)]

    def evidence(_: Sequence[Sequence[CastVote]], expected: float) -> tuple[float, float]:
        terms = [
            weight + float(process(scores, expected, last_only=True)[-1])
            for weight, scores in zip(log_weights, prefixes, strict=True)
            if scores
        ]
        total = float(logsumexp(terms))
        return total, total

    return evidence


def _weights(people: int, planned: int) -> list[float]:
    """Logs: half of the weight is on the planned number of people, the n-th has 1 / (2 n (n + 1)) besides."""
    return [math.log((n == planned) / 2 + 1 / (2 * n * (n + 1))) for n in range(1, people + 1)]


def _by_pair(by_person: Sequence[Sequence[CastVote]]) -> list[list[CastVote]]:
    """The votes on each pair that has any."""
    pairs: dict[str, list[CastVote]] = {}
    for votes in by_person:
        for vote in votes:
            pairs.setdefault(vote.pair.id, []).append(vote)
    return list(pairs.values())


# ---- scores -----------------------------------------------------------------------------------------------------


def _score(vote: CastVote) -> float:
    """Of ABX, 1 for a right vote; of a preference, 1 for the reference, 0 for the candidate, and 1/2 for neither."""
    if vote.pair.question is Question.ABX:
        return float(vote.is_right)
    return 0.5 if vote.chosen_role is None else float(vote.chosen_role is Role.REFERENCE)


def _scores(votes: Sequence[Sequence[CastVote]]) -> list[float]:
    """Of each pair, the mean over people."""
    return [fmean(map(_score, each)) for each in votes]


def _told(votes: Sequence[Sequence[CastVote]], evidence: Evidence, both_sides: Evidence) -> Told | None:
    if not votes:
        return None
    right = [sum(vote.is_right for vote in each) for each in votes]
    log_e, largest = evidence(votes, 0.5)
    return Told(
        right=sum(right),
        votes=sum(map(len, votes)),
        share=confidence_interval(lambda q: both_sides(votes, q)[0], fmean(_scores(votes))),
        e_value=_exp(log_e),
        p_value=min(1.0, math.exp(-largest)),
        luck=sign_flip_p_value([2 * n - len(each) for n, each in zip(right, votes, strict=True)]),
    )


def _preferred(votes: Sequence[Sequence[CastVote]], evidence: Evidence) -> Preferred | None:
    if not votes:
        return None
    chosen = [vote.chosen_role for each in votes for vote in each]
    log_e, largest = evidence(votes, 0.5)
    return Preferred(
        reference=chosen.count(Role.REFERENCE),
        candidate=chosen.count(Role.CANDIDATE),
        equal=chosen.count(None),
        share=confidence_interval(lambda q: evidence(votes, q)[0], fmean(_scores(votes))),
        e_value=_exp(log_e),
        p_value=min(1.0, math.exp(-largest)),
    )


def _caught(ballots: Sequence[VotedBallot], kind: PairKind) -> Caught:
    votes = [vote for ballot in ballots for vote in ballot.of(Question.ABX, kind)]
    return Caught(sum(vote.is_right for vote in votes), len(votes))


def _guesses(votes: Iterable[CastVote]) -> int:
    return sum(vote.confidence == GUESS for vote in votes)


def _exp(log_e: float) -> float:
    return min(math.exp(min(log_e, 700.0)), _LARGEST_E)
