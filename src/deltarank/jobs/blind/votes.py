"""Reads the key and the votes of a test, and refuses what does not belong together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from deltarank.errors import JobError, UsageError
from deltarank.jobs.blind.presentation import presentation
from deltarank.results import BlindKey, BlindVotes, KeyPair, PairKind, Question, Role, Vote, VoteChoice


@dataclass(frozen=True)
class CastVote:
    """A vote with the pair that it is about, and the number of the chosen text; None if they were called equal."""

    pair: KeyPair
    chosen: int | None
    confidence: int | None

    @property
    def is_right(self) -> bool:
        """Of an ABX vote: whether the chosen text is by the writer of X."""
        return self.chosen == self.pair.x

    @property
    def chosen_role(self) -> Role | None:
        return None if self.chosen is None else self.pair.writers[self.chosen - 1]


@dataclass(frozen=True)
class VotedBallot:
    """The votes of one person."""

    voter: str
    name: str
    started: str
    votes: tuple[CastVote, ...]

    def of(self, question: Question, kind: PairKind = PairKind.TEST) -> Iterator[CastVote]:
        """The votes on pairs of this kind, in the order in which they were given."""
        return (vote for vote in self.votes if vote.pair.question is question and vote.pair.kind is kind)


def read_key(path: Path) -> tuple[BlindKey, str]:
    """The key and the SHA-256 of its file.

    Raises:
        ResultsError: (slug "results-unreadable") there is none, or it is something else.
    """
    key = BlindKey.load(path)
    file = path / BlindKey.file_name if path.is_dir() else path
    return key, hashlib.sha256(file.read_bytes()).hexdigest()


def read_votes(key: BlindKey, key_sha256: str, paths: Sequence[Path]) -> list[VotedBallot]:
    """The votes of all people, in the order in which they began.

    Raises:
        UsageError: (slug "blind-no-votes") no file is given.
        ResultsError: (slug "results-unreadable") a file cannot be read.
        JobError: votes do not belong to this test, were changed, or are twice by the same voter.
    """
    if not paths:
        raise UsageError(
            "There are no votes to score.", cure="Give the files that the voters sent.", slug="blind-no-votes"
        )
    files: dict[str, Path] = {}
    ballots = []
    for path in paths:
        votes = _read(path)
        _check_test(votes, key, key_sha256, path)
        if votes.voter in files:
            raise _twice(votes, files[votes.voter], path)
        files[votes.voter] = path
        ballots.append(VotedBallot(votes.voter, votes.name, votes.started, tuple(_cast(votes, key, path))))
    return sorted(ballots, key=lambda each: (each.started, each.voter))


def checksum_of(text: str | bytes) -> str:
    """SHA-256 of the JSON without its checksum and without spaces, as JavaScript's `JSON.stringify` writes it."""
    content = {name: value for name, value in json.loads(text).items() if name != "checksum"}
    plain = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(plain.encode("utf-8", "surrogatepass")).hexdigest()


def _read(path: Path) -> BlindVotes:
    votes = BlindVotes.load(path)
    if votes.checksum != checksum_of(path.read_bytes()):
        raise JobError(
            f"{path} was changed after the page exported it: its checksum does not match.",
            cure="Ask the voter for the file as the page exported it.",
            slug="blind-votes-changed",
        )
    return votes


def _check_test(votes: BlindVotes, key: BlindKey, key_sha256: str, path: Path) -> None:
    if votes.test != key.test:
        raise JobError(
            f"{path} has votes of another test: {votes.test!a}, and the key is of {key.test!a}.",
            cure="Give each vote with the key of its own test.",
            slug="blind-other-test",
        )
    if votes.key_sha256 != key_sha256:
        raise JobError(
            f"The key was changed after the page was made: the SHA-256 of its file is {key_sha256}, and {path} was "
            f"voted under {votes.key_sha256!a}.",
            cure="Give the key.json that `deltarank blind make` wrote, byte for byte.",
            slug="blind-key-changed",
        )


def _twice(votes: BlindVotes, first: Path, second: Path) -> JobError:
    name = f" ({votes.name!a})" if votes.name else ""
    return JobError(
        f"{first} and {second} are by the same voter{name}.",
        cure="Give one file for each person: the one that was exported last has the most votes.",
        slug="blind-voter-twice",
    )


def _cast(votes: BlindVotes, key: BlindKey, path: Path) -> Iterator[CastVote]:
    """The votes, if they are on the pairs that this voter's page showed, in its order."""
    screens = presentation(key, votes.voter)
    for number, vote in enumerate(votes.votes, start=1):
        screen = screens[number - 1] if number <= len(screens) else None
        if screen != (vote.pair, vote.a) or not _is_answer(vote, key.pair[vote.pair].question):
            raise JobError(
                f"{path}: vote {number} is not one that the page of this test can give.",
                cure="Ask the voter for the file as the page exported it.",
                slug="blind-votes-changed",
            )
        chosen = {VoteChoice.A: vote.a, VoteChoice.B: 3 - vote.a, VoteChoice.EQUAL: None}[vote.choice]
        yield CastVote(key.pair[vote.pair], chosen, vote.confidence)


def _is_answer(vote: Vote, question: Question) -> bool:
    if question is Question.ABX:
        return vote.choice is not VoteChoice.EQUAL and vote.confidence is not None
    return vote.confidence is None
