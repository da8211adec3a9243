"""Which modules a configuration means: names, ends of names, and regular expressions from strangers.

An expression can be written so that matching it takes years. Those that PEFT's users write are short: a few repeats, no
repeated groups. Others are not run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

_LONGEST = 1000
_LONGEST_NAME = 400
_MOST_REPEATS = 3
_PLAIN = re.compile(r"[A-Za-z0-9_.-]*")
_REPEAT = re.compile(r"(?<!\\)[*+{]")
_WILD = re.compile(r"\(\?|\\[1-9]|\)\s*[*+?{]|[*+}]\s*[*+{]")
"""Lookarounds and flags, references back, repeated groups, repeats of repeats."""


class Unfit(Exception):
    """A field of the configuration holds something that it cannot hold."""


def ends_of(name: str) -> Iterator[str]:
    """ "a.b.c" -> "a.b.c", "b.c", "c"."""
    yield name
    place = name.find(".")
    while place >= 0:
        yield name[place + 1 :]
        place = name.find(".", place + 1)


def _tame(text: str) -> re.Pattern[str] | None:
    """The expression, if it can do no harm."""
    if len(text) > _LONGEST or _WILD.search(text) or len(_REPEAT.findall(text)) > _MOST_REPEATS:
        return None
    try:
        return re.compile(f"(?:{text})$")
    except (re.error, RecursionError, OverflowError):
        return None


class Patterns:
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
                raise Unfit(f"patterns have a key that is no plain expression: {ascii(key)[:80]}")

    def __bool__(self) -> bool:
        return bool(self._plain or self._expressions)

    def get(self, module: str, default: float) -> float:
        found = [self._plain[end] for end in ends_of(module) if end in self._plain]
        if self._expressions and len(module) <= _LONGEST_NAME:
            found += [(place, value) for place, tame, value in self._expressions if _fits_an_end(tame, module)]
        return min(found)[1] if found else default


def _fits_an_end(tame: re.Pattern[str], module: str) -> bool:
    """From the start of the name or from behind a dot; `^` is the start of the name only."""
    starts = [0, *(i + 1 for i, letter in enumerate(module) if letter == ".")]
    return any(tame.match(module, start) for start in starts)


@dataclass(frozen=True)
class Globs:
    """target_modules or exclude_modules: a list of names and ends of names, or one expression.

    all              whatever there is
    unread           the expression was not run: as a target it is taken to cover whatever the file has a tensor for
    """

    all: bool = False
    ends: frozenset[str] = frozenset()
    expression: re.Pattern[str] | None = None
    unread: bool = False

    @classmethod
    def everything(cls) -> Globs:
        return cls(all=True)

    @classmethod
    def nothing(cls) -> Globs:
        return cls()

    @classmethod
    def names(cls, names: tuple[str, ...]) -> Globs:
        return cls(ends=frozenset(names))

    @classmethod
    def pattern(cls, text: str) -> Globs:
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
            return len(module) <= _LONGEST_NAME and self.expression.match(module) is not None
        return any(end in self.ends for end in ends_of(module))
