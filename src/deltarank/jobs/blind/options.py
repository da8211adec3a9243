"""The options of a blind test, checked before anything is read."""

from __future__ import annotations

from dataclasses import dataclass

from deltarank.errors import UsageError
from deltarank.system import Default

SHORTEST_TEXT = 40
"""Characters. Shorter texts say too little, and are left out."""

LONGEST_TEXT = 2000
"""Characters that results.json has of an answer."""

MOST_PAIRS = 1000
CATCH_PAIRS = 8
"""One pair of each kind of catch pair for so many pairs."""


@dataclass(frozen=True, kw_only=True)
class BlindOptions:
    """What a test consists of; `deltarank.make_blind_test` explains each.

    Raises:
        UsageError: (slug "bad-number") a number is out of its range.
    """

    pairs: int = Default.BLIND_PAIRS
    preferences: int = Default.BLIND_PREFERENCES
    characters: int = Default.BLIND_CHARACTERS
    people: int = Default.BLIND_PEOPLE

    def __post_init__(self) -> None:
        _check("pairs", self.pairs, least=0, most=MOST_PAIRS)
        _check("preferences", self.preferences, least=0, most=MOST_PAIRS)
        _check("characters", self.characters, least=SHORTEST_TEXT, most=LONGEST_TEXT)
        _check("people", self.people, least=1, most=10_000)
        if self.pairs == 0 and self.preferences == 0:
            raise UsageError(
                "A test without pairs asks nothing: --pairs and --preferences are both 0.",
                cure="Give at least one of them.",
                slug="bad-number",
            )

    @property
    def catch_pairs(self) -> int:
        """Pairs of each kind that catch voters: one for every eight pairs, rounded up."""
        return -(-self.pairs // CATCH_PAIRS)


def _check(option: str, value: object, *, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise UsageError(
            f"--{option} is {value}; a whole number from {least:,} to {most:,} was expected.",
            cure="Give a number in this range.",
            slug="bad-number",
        )
