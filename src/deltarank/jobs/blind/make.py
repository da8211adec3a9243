"""Makes the key and the ballot of a test from the dealt pairs."""

from __future__ import annotations

import hashlib
import json
import os
import random
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path

from deltarank.errors import JobError
from deltarank.jobs.blind.dealer import Dealer, DealtPair
from deltarank.jobs.blind.options import BlindOptions
from deltarank.jobs.blind.sources import TextSource
from deltarank.results import Ballot, BallotPair, BlindKey, KeyPair, PairKind, Question, Role, count, listing, shorten
from deltarank.system import tool_version

_CHARACTERS_PER_MINUTE = 1400
"""How fast people read: 238 words a minute (Brysbaert 2019)."""

_SECONDS_PER_ANSWER = 8
_LONGEST_SAMPLER = 200
_ID_BITS, _TEST_BITS, _SECRET_BITS = 32, 64, 256


def make_key(
    source: TextSource, options: BlindOptions, folder: Path, created: str, seed: int | None
) -> tuple[BlindKey, tuple[BallotPair, ...], tuple[str, ...]]:
    """The key, what the page shows of each pair, and notes for whoever runs the test.

    Args:
        folder: where the key will be, to which the run is relative.
        seed: of the random numbers; None: those of the operating system.

    Raises:
        JobError: (slug "blind-few-answers") no pair can be made.
    """
    numbers = secrets.SystemRandom() if seed is None else random.Random(seed)
    dealer = Dealer(source, options, numbers)
    dealt = dealer.deal(options)
    _check_enough(dealt, options, dealer)
    sampler = source.sampler if dealer.may_be_shown(source.sampler or "") else None
    pairs = [(f"{numbers.getrandbits(_ID_BITS):08x}", pair) for pair in dealt]
    key = BlindKey(
        test=f"{numbers.getrandbits(_TEST_BITS):016x}",
        models=source.models,
        pairs=tuple(_key_pair(name, pair, source) for name, pair in pairs),
        people=options.people,
        sampler=sampler and shorten(sampler, most=_LONGEST_SAMPLER),
        kld=source.kld,
        run=_relative(source.run, folder),
        secret=f"{numbers.getrandbits(_SECRET_BITS):064x}",
        created=created,
        tool_version=tool_version(),
        settings={"characters": options.characters},
    )
    return key, tuple(_ballot_pair(name, pair) for name, pair in pairs), tuple(_notes(key, source, options, dealer))


def make_ballot(key: BlindKey, key_sha256: str, pairs: tuple[BallotPair, ...]) -> Ballot:
    has_catch_pairs = any(pair.kind is not PairKind.TEST for pair in key.pairs)
    return Ballot(key.test, key_sha256, pairs, key.sampler, _minutes(pairs), has_catch_pairs, key.tool_version)


def _minutes(pairs: Sequence[BallotPair]) -> int:
    characters = sum(len(pair.prompt) + sum(map(len, pair.texts)) + len(pair.x or "") for pair in pairs)
    minutes = characters / _CHARACTERS_PER_MINUTE + len(pairs) * _SECONDS_PER_ANSWER / 60
    return max(1, round(minutes)) if minutes < 10 else 5 * round(minutes / 5)


def _key_pair(name: str, pair: DealtPair, source: TextSource) -> KeyPair:
    shown = json.dumps([pair.prompt, *pair.texts, pair.x]).encode()
    return KeyPair(
        id=name,
        question=pair.question,
        kind=pair.kind,
        writers=pair.writers,
        x=pair.x_is,
        characters=pair.characters,
        tokens=None if source.tokens is None else round(pair.characters * source.tokens, 1),
        texts_sha256=hashlib.sha256(shown).hexdigest(),
    )


def _ballot_pair(name: str, pair: DealtPair) -> BallotPair:
    return BallotPair(name, pair.question, pair.prompt, pair.texts, pair.x)


def _relative(run: Path | None, folder: Path) -> str | None:
    """With forward slashes; the absolute path where there is no relative one (another drive)."""
    if run is None:
        return None
    try:
        return Path(os.path.relpath(run, folder)).as_posix()
    except ValueError:
        return run.resolve().as_posix()


def _check_enough(dealt: Sequence[DealtPair], options: BlindOptions, dealer: Dealer) -> None:
    made = {(pair.question, pair.kind) for pair in dealt}
    cure = "Run `deltarank outputs` again with more --samples, --max-tokens or --prompts, or add answers to the files."
    left = f" ({left_out})" if (left_out := _left_out(dealer)) else ""
    if options.pairs and (Question.ABX, PairKind.TEST) not in made:
        raise JobError(
            'The question "who wrote X: A or B?" needs two different answers of each model to one prompt, and no '
            f"prompt has them{left}.",
            cure=f"{cure} To ask for preferences only, use --pairs 0.",
            slug="blind-few-answers",
        )
    if options.preferences and (Question.PREFERENCE, PairKind.TEST) not in made and not options.pairs:
        raise JobError(f"No prompt has two answers that can be shown{left}.", cure=cure, slug="blind-few-answers")


def _notes(key: BlindKey, source: TextSource, options: BlindOptions, dealer: Dealer) -> Iterator[str]:
    asked = {Question.ABX: options.pairs, Question.PREFERENCE: options.preferences}
    for question, number in asked.items():
        if (made := key.count(question)) < number:
            what = "who wrote X" if question is Question.ABX else "which is better"
            yield f'Of {count(number, "pair")} for "{what}", {made} could be made: there are not enough answers.'
    if any(key.count(question) < number for question, number in asked.items()):
        more = "`deltarank outputs` with more --samples or --prompts" if source.run else "more answers in the files"
        yield f"More pairs need {more}."
    if left_out := _left_out(dealer):
        yield f"Left out: {left_out}."
    if options.pairs and not key.count(Question.ABX, PairKind.SURE):
        what = "the candidate is the base" if source.run and Role.BASE not in source.models else "no answers of a base"
        yield f"There are no pairs that anybody should tell apart ({what}): careless voters cannot be found."
    if options.pairs and not key.count(Question.ABX, PairKind.SAME_MODEL):
        yield "There are no pairs of one model twice: they need three answers of one model to a prompt."
    if source.sampler is None:
        yield 'The sampling settings are unknown; they have to be equal. Each line of a file may have a "sampler".'
    elif key.sampler is None:
        yield "The sampling settings are not on the page, because they may name a model."


def _left_out(dealer: Dealer) -> str:
    reasons = [
        f"{count(dealer.shared, 'answer that was', 'answers that were')} given more than once" if dealer.shared else "",
        f"{count(dealer.left_out, 'answer')} that may name a model" if dealer.left_out else "",
        f"{count(dealer.too_short, 'answer that is', 'answers that are')} too short" if dealer.too_short else "",
    ]
    return listing([each for each in reasons if each])
