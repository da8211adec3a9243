"""Which modules a configuration means: names, ends of names, and regular expressions from strangers.

An expression can be written so that matching it takes years. Those that PEFT's users write are short: a few repeats, a
few choices, no repeated groups. Others are not run.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

_LONGEST = 1000
_LONGEST_NAME = 200
_MOST_PARTS = 24
_MOST_REPEATS = 3
_MOST_WAYS = 10_000
_PLAIN = re.compile(r"[A-Za-z0-9_.-]*")
_INERT = re.compile(r"\\.|\[[^\]]*\]", re.DOTALL)
"""One letter, whatever stands in it: an escape, a class."""

_REPEAT = re.compile(r"[*+]\??|\{[^}]*\}?\??|\?")
_WILD = re.compile(r"\(\?|\\[1-9]|\)\s*[*+?{]|[*+}]\s*[*+{]")
"""Lookarounds and flags, references back, repeated groups, repeats of repeats."""


class InvalidField(Exception):
    """A field of the configuration holds something that it cannot hold."""


def name_suffixes(name: str) -> Iterator[str]:
    """ "a.b.c" -> "a.b.c", "b.c", "c"."""
    yield name
    place = name.find(".")
    while place >= 0:
        yield name[place + 1 :]
        place = name.find(".", place + 1)


def _tame(text: str) -> re.Pattern[str] | None:
    """The expression, if it can do no harm."""
    bare = _INERT.sub("x", text)
    if len(text) > _LONGEST or _WILD.search(text) or len(_REPEAT.findall(bare)) > _MOST_REPEATS:
        return None
    if _ways(bare) > _MOST_WAYS:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what another Python may make of it one day
            return re.compile(f"(?:{text})$")
    except (re.error, RecursionError, OverflowError):
        return None


def _ways(bare: str) -> int:
    """How many ways there are through all of its choices, at most: thirty of two each take years to fail."""
    ways, choices = 1, [1]
    for letter in bare:
        if letter == "(":
            choices.append(1)
        elif letter == ")" and len(choices) > 1:
            ways *= choices.pop()
        elif letter == "|":
            choices[-1] += 1
    return ways * math.prod(choices)


class ModulePatterns:
    """rank_pattern or alpha_pattern: the first key that fits the end of a module's name decides, as in PEFT.

    PEFT matches `(.*\\.)?(KEY)$`. A key without signs of an expression is looked up; its dots are then dots, where PEFT
    would let them be any letter.

    Raises:
        Unfit: a key is an expression that is not run.
    """

    def __init__(self, entries: Mapping[str, float]) -> None:
        self._plain: dict[str, tuple[int, float]] = {}
        self._expressions: list[tuple[int, re.Pattern[str], float]] = []
        for place, (key, value) in enumerate(entries.items()):
            if _PLAIN.fullmatch(key):
                self._plain[key] = (place, value)
            elif (tame := _tame(key)) is not None:
                self._expressions.append((place, tame, value))
            else:
                raise InvalidField(f"patterns have a key that is no plain expression: {ascii(key)[:80]}")

    def __bool__(self) -> bool:
        return bool(self._plain or self._expressions)

    def get(self, module: str, default: float) -> float:
        found = [self._plain[end] for end in name_suffixes(module) if end in self._plain]
        if self._expressions and _is_sane(module):
            found += [(place, value) for place, tame, value in self._expressions if _fits_an_end(tame, module)]
        return min(found)[1] if found else default


def _is_sane(module: str) -> bool:
    return len(module) <= _LONGEST_NAME and module.count(".") < _MOST_PARTS


def _fits_an_end(tame: re.Pattern[str], module: str) -> bool:
    """From the start of the name or from behind a dot; `^` is the start of the name only."""
    starts = [0, *(i + 1 for i, letter in enumerate(module) if letter == ".")]
    return any(tame.match(module, start) for start in starts)


@dataclass(frozen=True)
class ModuleSelector:
    """target_modules or exclude_modules: a list of names and ends of names, or one expression.

    all              whatever there is
    unread           the expression was not run: as a target it is taken to cover whatever the file has a tensor for
    """

    all: bool = False
    ends: frozenset[str] = frozenset()
    expression: re.Pattern[str] | None = None
    unread: bool = False

    @classmethod
    def everything(cls) -> ModuleSelector:
        return cls(all=True)

    @classmethod
    def nothing(cls) -> ModuleSelector:
        return cls()

    @classmethod
    def names(cls, names: tuple[str, ...]) -> ModuleSelector:
        return cls(ends=frozenset(names))

    @classmethod
    def pattern(cls, text: str) -> ModuleSelector:
        if text == "all-linear":
            return cls.everything()
        tame = _tame(text)
        return cls(expression=tame, unread=tame is None)

    def __bool__(self) -> bool:
        return self.all or bool(self.ends) or self.expression is not None

    def cover(self, module: str) -> bool:
        if self.all or self.unread:
            return True
        if self.expression is not None:
            return _is_sane(module) and self.expression.match(module) is not None
        return any(end in self.ends for end in name_suffixes(module))
