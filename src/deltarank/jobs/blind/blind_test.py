"""A blind test as it was made: its key, where its files are, and what it can show."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from deltarank.divergence import votes_needed
from deltarank.jobs.blind.power import (
    HOPELESS,
    abx_accuracy,
    best_possible,
    found_share,
    preference_share,
    tokens_for,
)
from deltarank.jobs.blind.sentences import NEARLY_CERTAIN
from deltarank.results import (
    BestPossible,
    BlindKey,
    PairKind,
    Question,
    Role,
    ShownAsLines,
    count,
    percent,
    to_plain,
)

SOUGHT = 0.6
"""The preference that the power is stated for."""


@dataclass(frozen=True, repr=False)
class BlindTest(ShownAsLines):
    """What `make_blind_test` wrote into `folder`: vote.html for the voters, key.json for whoever runs the test.

    `minutes` is how long a person takes, about.
    """

    folder: Path
    key: BlindKey
    key_sha256: str
    minutes: int
    notes: tuple[str, ...] = ()

    @property
    def page(self) -> Path:
        return self.folder / "vote.html"

    @cached_property
    def best(self) -> BestPossible | None:
        """What a judge who knows both models perfectly could reach at most; None if their divergence is unknown."""
        return best_possible(self.key)

    def lines(self) -> list[str]:
        """The test and its power, in sentences; a hopeless test says so first; the last line is the hash of the key."""
        said = (*self._hopeless(), *self._contents(), *self._power(), *self.notes)
        return [*said, f"SHA-256 of the key: {self.key_sha256}"]

    def to_plain(self) -> dict[str, Any]:
        return {
            "page": str(self.page),
            "key": str(self.folder / BlindKey.file_name),
            "key_sha256": self.key_sha256,
            "test": self.key.test,
            "minutes": self.minutes,
            "pairs": {
                "abx": {kind.value: self.key.count(Question.ABX, kind) for kind in PairKind},
                "preference": {PairKind.TEST.value: self.key.count(Question.PREFERENCE)},
            },
            "best": to_plain(self.best),
            "votes_needed": {"abx": votes_needed(SOUGHT), "preference": votes_needed(SOUGHT, two_sided=True)},
            "sentences": self.lines(),
        }

    def _contents(self) -> Iterator[str]:
        models, count_of = self.key.models, self.key.count
        yield f"Blind test of {models[Role.CANDIDATE]} against {models[Role.REFERENCE]}."
        if tests := count_of(Question.ABX):
            pairs = [f"{count(tests, 'pair')} of the two models"]
            if same := count_of(Question.ABX, PairKind.SAME_MODEL):
                pairs.append(f"{same} of one model twice, which nobody can know")
            if sure := count_of(Question.ABX, PairKind.SURE):
                known = f"{models[Role.REFERENCE]} and {models[Role.BASE]}"
                pairs.append(f"{sure} of {known}, which anybody should tell apart")
            yield f'{tests + same + sure} times "who wrote X: A or B?": {", and ".join(_two(pairs))}.'
        if preferences := count_of(Question.PREFERENCE):
            yield f'{preferences} times "which do you like better?": {count(preferences, "pair")} of the two models.'
        length = sum(pair.characters for pair in self.key.pairs) / len(self.key.pairs)
        tokens = f" (about {self.best.tokens:.0f} tokens)" if self.best else ""
        yield f"The texts of a pair are cut at one length: {length:.0f} characters on average{tokens}."
        yield f"One person takes about {count(self.minutes, 'minute')}."

    def _power(self) -> Iterator[str]:
        pairs, sought, needs = self.key.count(Question.ABX), percent(SOUGHT), []
        if pairs:
            needs.append((f"somebody who is right {sought} of the time", votes_needed(SOUGHT)))
        if self.key.count(Question.PREFERENCE):
            needs.append((f"a preference of {sought}", votes_needed(SOUGHT, two_sided=True)))
        if needs:
            (what, votes), *more = needs
            rest = "".join(f", and to find {other} about {number}" for other, number in more)
            yield f"To find {what} takes about {votes} votes of one person (with a probability of 80 %){rest}."
        if pairs:
            yield from self._found(pairs)
        yield from self._limit()

    def _found(self, pairs: int) -> Iterator[str]:
        """Who can be found with so many pairs: perhaps nobody, perhaps only who is better than a perfect judge."""
        share, at_best = found_share(pairs), self.best.abx if self.best and self.best.abx else 1 - 1e-9
        if share is not None:
            yield f"The test can detect a person only if that person is right in about {percent(share)} of pairs."
        if (share is None or share > at_best) and (needed := votes_needed(at_best)):
            who = "somebody who is always right" if at_best > NEARLY_CERTAIN else "a perfect judge"
            yield f"Too few pairs: to detect even {who} takes about {needed:,}, and there are {pairs:,}."

    def _limit(self) -> Iterator[str]:
        if self.best is None:
            yield "The highest score that is possible is unknown, because the divergence of the two models is."
            return
        if min(share for share in (self.best.abx, self.best.preference) if share is not None) >= NEARLY_CERTAIN:
            does = "is right nearly always" if self.best.abx is not None else "favours one of them nearly always"
            yield f"At best, a judge who knows both models perfectly {does}."
            return
        yield f"A judge who knows both models perfectly {', and '.join(_limits(self.best))}."

    def _hopeless(self) -> Iterator[str]:
        bounds = [each for each in (self.best.abx, self.best.preference) if each is not None] if self.best else []
        if self.best is None or not bounds or min(bounds) >= HOPELESS:
            return
        assert self.key.kld is not None
        enough = tokens_for(self.key.kld, preference_share if self.best.abx is None else abx_accuracy)
        cure = (
            f"Use longer replies: about {enough:,} tokens for {percent(HOPELESS)} (`deltarank outputs --max-tokens`, "
            "and --characters here)."
            if enough is not None
            else "The two models predict the same: no length is enough."
        )
        what = "This test" if max(bounds) < HOPELESS else 'The question "who wrote X"'
        can = "favour one model" if self.best.abx is None else "be right"
        yield (
            f"{what} cannot show anything: at {self.best.tokens:.0f} tokens, nobody can {can} in more than "
            f"{percent(min(bounds))} of pairs. {cure}"
        )


def _two(items: Sequence[str]) -> list[str]:
    """All but the last in one text, and the last."""
    return [", ".join(items[:-1]), items[-1]] if len(items) > 1 else list(items)


def _limits(best: BestPossible) -> Iterator[str]:
    """What the best judge reaches at most, by question."""
    if best.abx is not None:
        yield f'is right in at most {percent(best.abx)} of "who wrote X" pairs'
    if best.preference is not None:
        yield f"can favour one model in at most {percent(best.preference)} of preference pairs"
