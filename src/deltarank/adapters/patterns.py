"""Which modules a configuration names: by name, by the end of a name, or by a regular expression.

Configurations come from strangers, and a regular expression can be written so that matching it takes years. Those that
PEFT's users write are short: a few repeats, a few choices, no repeated groups. Any other expression is not run.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

_MAX_EXPRESSION_LENGTH = 1000
_MAX_NAME_LENGTH = 200
_MAX_NAME_PARTS = 24
_MAX_REPEATS = 3
_MAX_PATHS = 10_000
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.-]*")
_SINGLE_CHARACTER = re.compile(r"\\.|\[[^\]]*\]", re.DOTALL)
"""What matches one character whatever it contains: an escape, a character class."""

_REPEAT = re.compile(r"[*+]\??|\{[^}]*\}?\??|\?")
_DANGEROUS = re.compile(r"\(\?|\\[1-9]|\)\s*[*+?{]|[*+}]\s*[*+{]")
"""Lookarounds and flags, backreferences, repeated groups, repeats of repeats."""


class InvalidFieldError(Exception):
    """A field of the configuration has a value that the field cannot have."""


def is_plain_name(text: str) -> bool:
    """Whether text has no character with a meaning in regular expressions but dots."""
    return len(text) <= _MAX_NAME_LENGTH and _PLAIN_NAME.fullmatch(text) is not None


def name_suffixes(name: str) -> Iterator[str]:
    """ "a.b.c" -> "a.b.c", "b.c", "c"."""
    yield name
    dot = name.find(".")
    while dot >= 0:
        yield name[dot + 1 :]
        dot = name.find(".", dot + 1)


def _compile_safe(text: str) -> re.Pattern[str] | None:
    """The compiled expression; None if it is invalid, or if matching it could take too long."""
    simplified = _SINGLE_CHARACTER.sub("x", text)
    if len(text) > _MAX_EXPRESSION_LENGTH or _DANGEROUS.search(text) or len(_REPEAT.findall(simplified)) > _MAX_REPEATS:
        return None
    if _count_paths(simplified) > _MAX_PATHS:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a later Python may deprecate part of the syntax
            return re.compile(f"(?:{text})$")
    except (re.error, RecursionError, OverflowError):
        return None


def _count_paths(simplified: str) -> int:
    """An upper bound of the ways through all alternatives: thirty alternatives of two take years to fail."""
    paths, alternatives = 1, [1]
    for letter in simplified:
        if letter == "(":
            alternatives.append(1)
        elif letter == ")" and len(alternatives) > 1:
            paths *= alternatives.pop()
        elif letter == "|":
            alternatives[-1] += 1
    return paths * math.prod(alternatives)


class ModulePatterns:
    """rank_pattern or alpha_pattern: the first key that matches the end of a module's name decides, as in PEFT.

    PEFT matches `(.*\\.)?(KEY)$`. A key without special characters is looked up as it is: its dots are literal, while
    in PEFT they match any character.

    Raises:
        InvalidFieldError: a key is an expression that is not run.
    """

    def __init__(self, entries: Mapping[str, float]) -> None:
        self._plain: dict[str, tuple[int, float]] = {}
        self._expressions: list[tuple[int, re.Pattern[str], float]] = []
        for position, (key, value) in enumerate(entries.items()):
            if _PLAIN_NAME.fullmatch(key):
                self._plain[key] = (position, value)
            elif (expression := _compile_safe(key)) is not None:
                self._expressions.append((position, expression, value))
            else:
                raise InvalidFieldError(
                    f"rank_pattern or alpha_pattern has a regular expression that is invalid or too complex to run: "
                    f"{ascii(key)[:80]}"
                )

    def __bool__(self) -> bool:
        return bool(self._plain or self._expressions)

    def get(self, module: str, default: float) -> float:
        matches = [self._plain[suffix] for suffix in name_suffixes(module) if suffix in self._plain]
        if self._expressions and _is_short(module):
            matches += [(position, value) for position, key, value in self._expressions if _matches_suffix(key, module)]
        return min(matches)[1] if matches else default


def _is_short(module: str) -> bool:
    return len(module) <= _MAX_NAME_LENGTH and module.count(".") < _MAX_NAME_PARTS


def _matches_suffix(expression: re.Pattern[str], module: str) -> bool:
    """From the start of the name or after a dot; `^` is the start of the name only."""
    starts = [0, *(i + 1 for i, letter in enumerate(module) if letter == ".")]
    return any(expression.match(module, start) for start in starts)


@dataclass(frozen=True)
class ModuleSelector:
    """target_modules or exclude_modules: a list of names and ends of names, or one regular expression.

    selects_all   every module
    suffixes      modules with these names, or whose names end in them after a dot
    not_run       the expression was too complex to run. As a target it is taken to match every module that the file
                  has a tensor for
    """

    selects_all: bool = False
    suffixes: frozenset[str] = frozenset()
    expression: re.Pattern[str] | None = None
    not_run: bool = False

    @classmethod
    def from_expression(cls, text: str) -> ModuleSelector:
        if text == "all-linear":
            return cls(selects_all=True)
        expression = _compile_safe(text)
        return cls(expression=expression, not_run=expression is None)

    def __bool__(self) -> bool:
        return self.selects_all or bool(self.suffixes) or self.expression is not None

    def matches(self, module: str) -> bool:
        if self.selects_all or self.not_run:
            return True
        if self.expression is not None:
            return _is_short(module) and self.expression.match(module) is not None
        return any(suffix in self.suffixes for suffix in name_suffixes(module))
