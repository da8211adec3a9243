"""A blind test: its key, the votes of a person, and the score.

The key is kept by whoever runs the test. The page has its SHA-256 only, so that nobody can change it afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Annotated, Any

from msgspec import Meta

from deltarank.results.codec import Count, Share, StoredResult
from deltarank.results.formatting import figure, percent
from deltarank.results.logits import Interval
from deltarank.results.notebook_parts import sentences_html

FORMAT_VERSION = 1


class Question(StrEnum):
    """What is asked of a pair: is X by the writer of A or of B, or: which do you like better?"""

    ABX = "abx"
    PREFERENCE = "preference"


class PairKind(StrEnum):
    """TEST: reference against candidate. SAME_MODEL: one model twice. SURE: the reference against the base."""

    TEST = "test"
    SAME_MODEL = "same_model"
    SURE = "sure"


class Role(StrEnum):
    """Who wrote a text: the reference is the finetune, or the file --a; the candidate is the file --b."""

    REFERENCE = "reference"
    CANDIDATE = "candidate"
    BASE = "base"


class VoteChoice(StrEnum):
    """What a voter chose: A is the text on the left, or above; EQUAL is for preferences only."""

    A = "a"
    B = "b"
    EQUAL = "equal"


TextNumber = Annotated[int, Meta(ge=1, le=2)]
"""One of the two texts of a pair, as the key numbers them."""

Confidence = Annotated[int, Meta(ge=1, le=3)]
"""1: a guess, 2: probably, 3: surely."""


VoterId = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]
"""128 random bits."""


@dataclass(frozen=True)
class KeyPair:
    """A pair of texts on the page.

    writers          of text 1 and of text 2
    x                X is another text by the writer of this one; for one model twice, a coin; None for a preference
    characters       to which the texts are cut; `tokens` about as many tokens, None if unknown
    texts_sha256     of the texts as the page has them
    """

    id: str
    question: Question
    kind: PairKind
    writers: tuple[Role, Role]
    x: TextNumber | None
    characters: Count
    tokens: float | None
    texts_sha256: str


@dataclass(frozen=True)
class BlindKey(StoredResult):
    """Which text of which pair is whose: key.json.

    test             the identity of the test, which votes repeat
    models           the names of the models, by role
    pairs            in the order that the page has them in
    people           how many are expected to vote, which the score of all together is weighted for
    sampler          how the texts were sampled, in words; None if unknown
    kld              of the candidate on the reference's own answers, in nats per token; None if unknown
    run              the folder of the run, relative to that of the key; None for files of answers
    secret           random, so that nobody finds the key by trying out keys until the hash fits
    """

    description = "the key of a blind test"
    cure = "Give the key.json that `deltarank blind make` wrote, unchanged."
    file_name = "key.json"
    readable_format = FORMAT_VERSION

    test: str
    models: Mapping[Role, str]
    pairs: tuple[KeyPair, ...]
    people: Count
    sampler: str | None
    kld: float | None
    run: str | None
    secret: str
    created: str
    tool_version: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    format_version: Count = FORMAT_VERSION

    @cached_property
    def pair(self) -> Mapping[str, KeyPair]:
        """The pairs by their identity."""
        return {pair.id: pair for pair in self.pairs}

    def count(self, question: Question, kind: PairKind = PairKind.TEST) -> int:
        """How many pairs are of this kind."""
        return sum(pair.question is question and pair.kind is kind for pair in self.pairs)


@dataclass(frozen=True)
class Vote:
    """An answer: which text stood as A, what was chosen, and how surely (None for a preference)."""

    pair: str
    a: TextNumber
    choice: VoteChoice
    confidence: Confidence | None = None


@dataclass(frozen=True)
class BlindVotes(StoredResult):
    """The votes of one person, as the page exports them, in the order in which they were given.

    voter            random; the order of the pairs and the sides follow from it
    checksum         SHA-256 of everything else, which tells a damaged or edited file
    """

    description = "the votes of a blind test"
    cure = "Export the votes again on the page of this test, and give the file unchanged."
    readable_format = FORMAT_VERSION

    test: str
    key_sha256: str
    voter: VoterId
    name: str
    started: str
    votes: tuple[Vote, ...]
    checksum: str
    format_version: Count = FORMAT_VERSION


@dataclass(frozen=True)
class Told:
    """Answers to "is X A or B?" on pairs of reference and candidate.

    share            of right ones, with the interval that holds at any time of looking
    e_value          against chance; `p_value` is 1 / the largest one so far
    luck             the probability of as many right ones by luck, if the number of votes was fixed beforehand
    """

    right: Count
    votes: Count
    share: Interval
    e_value: float
    p_value: Share
    luck: Share


@dataclass(frozen=True)
class Preferred:
    """Answers to "which do you like better?": how often each model was, and how often neither.

    share            of preferences for the reference, equal ones counted half
    """

    reference: Count
    candidate: Count
    equal: Count
    share: Interval
    e_value: float
    p_value: Share

    @property
    def votes(self) -> int:
        return self.reference + self.candidate + self.equal


@dataclass(frozen=True)
class Caught:
    """Answers to catch pairs: how many were right."""

    right: Count
    votes: Count


@dataclass(frozen=True)
class VoterScore:
    """The score of one person, or of all together. None where nothing was voted.

    asked            pairs on the page; `votes` those that were answered
    sure             on pairs that anybody should tell apart
    same_model       on pairs that nobody can know
    guesses          of the answers in `told`, how many were called a guess
    """

    name: str
    voter: str
    asked: Count
    votes: Count
    told: Told | None
    preferred: Preferred | None
    sure: Caught
    same_model: Caught
    guesses: Count = 0

    def cells(self, *, unknown: str) -> tuple[str, ...]:
        """Right of how many, luck, e-value, interval, sure pairs, one model twice, preferences: as text, for tables."""
        told, liked = self.told, self.preferred
        return (
            f"{told.right} of {told.votes}" if told else unknown,
            percent(told.luck) if told else unknown,
            figure(told.e_value) if told else unknown,
            f"{percent(told.share.low)} to {percent(told.share.high)}" if told else unknown,
            f"{self.sure.right} of {self.sure.votes}" if self.sure.votes else unknown,
            f"{self.same_model.right} of {self.same_model.votes}" if self.same_model.votes else unknown,
            f"{liked.reference}:{liked.candidate}:{liked.equal}" if liked else unknown,
        )


@dataclass(frozen=True)
class BestPossible:
    """What a judge who knows both models perfectly could reach at most, with texts of this many tokens on average."""

    tokens: float
    abx: Share | None
    preference: Share | None


@dataclass(frozen=True)
class BlindScore(StoredResult):
    """The score of a blind test.

    reference        the name of the model that the candidate is compared with
    voters           in the order in which they began; `together` is None for fewer than two
    best             None where the divergence of the two models is unknown
    sentences        the score in words
    """

    description = "the score of a blind test"
    cure = "Run `deltarank blind score` again."

    test: str
    key_sha256: str
    reference: str
    candidate: str
    voters: tuple[VoterScore, ...]
    together: VoterScore | None
    best: BestPossible | None
    sentences: tuple[str, ...]
    created: str
    tool_version: str
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<BlindScore: {self.sentences[0]}>"

    def _repr_html_(self) -> str:
        return sentences_html(self.sentences)


@dataclass(frozen=True)
class BallotPair:
    """What the page knows of a pair: the prompt, two texts, and X if it is asked about."""

    id: str
    question: Question
    prompt: str
    texts: tuple[str, str]
    x: str | None


@dataclass(frozen=True)
class Ballot:
    """What the page of a blind test knows: no names, and nothing of the key but its hash.

    sampler          how all texts were sampled, in words
    minutes          that it takes to read and answer everything, about
    has_catch_pairs  whether any of the pairs are of one model twice, or of models that anybody should tell apart
    """

    test: str
    key_sha256: str
    pairs: tuple[BallotPair, ...]
    sampler: str | None
    minutes: Count
    has_catch_pairs: bool
    tool_version: str
