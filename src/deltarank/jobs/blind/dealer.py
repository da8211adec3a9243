"""Deals answers into pairs. No answer is shown twice, so that no pair tells anything about another."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from deltarank.jobs.blind.names import named_models, names_a_model
from deltarank.jobs.blind.options import SHORTEST_TEXT, BlindOptions
from deltarank.jobs.blind.sources import PromptAnswers, TextSource
from deltarank.jobs.blind.texts import clean, cut_alike
from deltarank.results import PairKind, Question, Role


@dataclass(frozen=True)
class DealtPair:
    """Texts to one prompt, cut alike, with their writers. X is by the writer of text `x_is`, 1 or 2."""

    question: Question
    kind: PairKind
    prompt: str
    writers: tuple[Role, Role]
    texts: tuple[str, str]
    x: str | None
    x_is: int | None
    characters: int


@dataclass(frozen=True)
class _Hand:
    """What a pair takes of a prompt: `each` answers of both roles, `texts` different ones in all."""

    question: Question
    kind: PairKind
    roles: tuple[Role, Role]
    each: int
    texts: int


_SPARE = None
"""Whose answers are spare: those of the reference that share random numbers with other models'."""

_COMPARED = (Role.REFERENCE, Role.CANDIDATE)
_RIVALS: Mapping[Role | None, Collection[Role]] = {
    Role.REFERENCE: [Role.CANDIDATE],
    Role.CANDIDATE: [Role.REFERENCE],
    Role.BASE: _COMPARED,
    _SPARE: tuple(Role),
}
"""Whose answers are not used if these gave them, too. The two models that are compared are treated alike."""

_TEST = _Hand(Question.ABX, PairKind.TEST, (Role.REFERENCE, Role.CANDIDATE), each=2, texts=4)
_SURE = _Hand(Question.ABX, PairKind.SURE, (Role.REFERENCE, Role.BASE), each=2, texts=4)
_SAME = _Hand(Question.ABX, PairKind.SAME_MODEL, (Role.REFERENCE, Role.REFERENCE), each=2, texts=3)
_PREFERENCE = _Hand(Question.PREFERENCE, PairKind.TEST, (Role.REFERENCE, Role.CANDIDATE), each=1, texts=2)


class Dealer:
    """Deals pairs from the answers of a source, at random.

    `left_out` counts the answers that name a model, `too_short` those that say too little, `shared` those of the two
    models that were given more than once.
    """

    def __init__(self, source: TextSource, options: BlindOptions, random_numbers: random.Random) -> None:
        self._random = random_numbers
        self._most = options.characters
        self._names = named_models([*source.models.values(), *source.secrets])
        self.left_out = self.too_short = self.shared = 0
        self._prompts = [_Stock(each, self) for each in source.prompts]

    def deal(self, options: BlindOptions) -> list[DealtPair]:
        """As many pairs of each kind as were asked for, or as there are answers for."""
        catch = options.catch_pairs
        wanted = {_SAME: catch, _SURE: catch, _TEST: options.pairs, _PREFERENCE: options.preferences}
        pairs: list[DealtPair] = []
        for hand in _turns(wanted):
            pairs += self._deal_one(hand)
        self._random.shuffle(pairs)
        return pairs

    def usable(self, texts: Sequence[str]) -> list[_Text]:
        """Clean texts without those that name a model or are too short."""
        cleaned = [_Text(clean(text), i) for i, text in enumerate(texts)]
        unnamed = [each for each in cleaned if not names_a_model(each.text, self._names)]
        kept = [each for each in unnamed if len(each.text) > SHORTEST_TEXT]
        self.left_out += len(cleaned) - len(unnamed)
        self.too_short += len(unnamed) - len(kept)
        return kept

    def may_be_shown(self, text: str) -> bool:
        return not names_a_model(clean(text), self._names)

    def shuffled(self, texts: Sequence[_Text], others: Iterable[_Text]) -> list[_Text]:
        """In random order, each beginning once, without those that `others` have: what is shown must not come again."""
        taken = {self._beginning(each) for each in others}
        own = {self._beginning(each): each for each in texts if self._beginning(each) not in taken}
        return self._random.sample(list(own.values()), len(own))

    def _beginning(self, each: _Text) -> str:
        return each.text[: self._most]

    def _deal_one(self, hand: _Hand) -> Iterator[DealtPair]:
        """From the prompt that was used least; those that still have a whole test pair are kept for one."""
        stocks = [stock for stock in self._prompts if stock.has(hand)]
        self._random.shuffle(stocks)
        for stock in sorted(stocks, key=lambda stock: (hand is not _TEST and stock.has(_TEST), stock.used)):
            if pair := self._pair(stock, hand):
                stock.used += 1
                yield pair
                return

    def _pair(self, stock: _Stock, hand: _Hand) -> DealtPair | None:
        """Takes the texts from the stock; None if two of them are the same, or too short once they are cut."""
        sides = list(zip(hand.roles, stock.take(hand), strict=True))
        self._random.shuffle(sides)
        shown, characters = cut_alike([text for _, texts in sides for text in texts], self._most)
        if len(set(shown)) < hand.texts or characters < SHORTEST_TEXT:
            return None
        first, second = shown[: hand.each], shown[hand.each :]
        coin = self._random.randrange(2) if hand.question is Question.ABX else None
        return DealtPair(
            question=hand.question,
            kind=hand.kind,
            prompt=stock.prompt,
            writers=(sides[0][0], sides[1][0]),
            texts=(first[0], second[0]),
            x=None if coin is None else (first, second)[coin][1],
            x_is=None if coin is None else coin + 1,
            characters=characters,
        )


@dataclass(frozen=True)
class _Text:
    """A clean answer. The candidate's, the base's and the spare ones of one index may share random numbers."""

    text: str
    index: int


class _Stock:
    """The answers to one prompt that have not been dealt yet."""

    def __init__(self, answers: PromptAnswers, dealer: Dealer) -> None:
        self.prompt = clean(answers.prompt)
        self.used = 0
        usable = {role: dealer.usable(texts) for role, texts in answers.answers.items()} | {
            _SPARE: dealer.usable(answers.spare)
        }
        self._left = {
            whose: dealer.shuffled(texts, [text for other in _RIVALS[whose] for text in usable.get(other, ())])
            for whose, texts in usable.items()
        }
        dealer.shared += sum(len(usable[role]) - len(self._left[role]) for role in _COMPARED)

    def has(self, hand: _Hand) -> bool:
        if hand is _SAME:
            return sum(len(self._left[whose]) for whose in (_SPARE, Role.REFERENCE)) >= hand.texts
        return all(len(self._left.get(role, ())) >= hand.each for role in hand.roles)

    def take(self, hand: _Hand) -> list[list[str]]:
        """The texts of both sides, the one to be shown first and the one that may be X second.

        Both of the latter are taken, though only one is shown: the other would give X away if it came up later. Of one
        model twice, they are the same text.
        """
        if hand is _SAME:
            one, two, x = (self._pop(_SPARE if self._left[_SPARE] else Role.REFERENCE) for _ in range(hand.texts))
            return [[one, x], [two, x]]
        return [[self._pop(role) for _ in range(hand.each)] for role in hand.roles]

    def _pop(self, whose: Role | None) -> str:
        """A text. Those that may begin as it does, because they share its random numbers, are not dealt any more."""
        taken = self._left[whose].pop()
        if whose is not Role.REFERENCE:
            for other in self._left.keys() - {whose, Role.REFERENCE}:
                self._left[other] = [each for each in self._left[other] if each.index != taken.index]
        return taken.text


def _turns(wanted: dict[_Hand, int]) -> list[_Hand]:
    """The hands in turn, each spread evenly over the whole, so that none takes all answers."""
    turns = [((i + 0.5) / number, hand) for hand, number in wanted.items() for i in range(number)]
    return [hand for _, hand in sorted(turns, key=lambda turn: turn[0])]
