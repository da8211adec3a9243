"""Files whose names count the parts of one checkpoint: model-00001-of-00003.safetensors, hf_model_0001_0.pt."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from deltarank.checkpoints.escape import quoted
from deltarank.errors import HeaderError
from deltarank.results import count, listing

_KINDS = r"\.(?:safetensors|bin|gguf|pt|pth|ckpt)"
_NUMBERED = re.compile(
    rf"(?P<before>.*?[-_.])(?P<number>\d{{1,6}})(?P<after>[-_.]of[-_.](?P<total>\d{{1,6}}).*?{_KINDS})"
)
"""transformers, diffusers, llama.cpp: model-00001-of-00003.safetensors, model-00001-of-00002.fp16.safetensors."""

_TORCHTUNE = re.compile(r"(?P<before>hf_model_)(?P<number>\d{4})(?P<after>_\d+\.(?:pt|safetensors))")
"""torchtune: part and epoch. How many parts there are is not in the name."""

_COMPLETE_CURE = "Finish the download or copy: all parts must be in the same folder. Then give the folder."


@dataclass(frozen=True)
class ShardSet:
    """Parts of one checkpoint.

    before, after    what the names have in common
    total            how many parts the names say that there are; None if they do not
    names            those that exist, by number
    """

    before: str
    after: str
    total: int | None
    names: dict[int, str] = field(default_factory=dict)

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(self.names[number] for number in sorted(self.names))

    @property
    def missing(self) -> tuple[str, ...]:
        """The parts that should exist and do not. A few programs count from 0."""
        first = 0 if 0 in self.names else 1
        last = max(self.names) if self.total is None else first + self.total - 1
        return tuple(self._name(number) for number in range(first, last + 1) if number not in self.names)

    def _name(self, number: int) -> str:
        digits = len(min(self.names.values(), key=len)) - len(self.before) - len(self.after)
        return f"{self.before}{number:0{digits}d}{self.after}"

    def part(self, name: str) -> str:
        """ "part 1 of 2" of a name of the set."""
        number = next(number for number, other in self.names.items() if other == name)
        shown = number + 1 if 0 in self.names else number
        return f"part {shown} of {self.total or len(self.names)}"

    def refuse_incomplete(self, *, place: str = "there") -> None:
        """Raises:
        HeaderError: (slug "missing-shard") parts are missing.
        """
        if not self.missing:
            return
        present, missing = (listing([quoted(name) for name in names], most=3) for names in (self.files, self.missing))
        parts = f"{len(self.names)} of {self.total} parts" if self.total else count(len(self.names), "part")
        raise HeaderError(
            f"Only {parts} of a checkpoint ({present}) {'is' if len(self.names) == 1 else 'are'} {place}; "
            f"{missing} {'is' if len(self.missing) == 1 else 'are'} missing.",
            cure=_COMPLETE_CURE,
            slug="missing-shard",
        )


def shard_sets(names: Iterable[str]) -> list[ShardSet]:
    """The sets that some of these names belong to."""
    sets: dict[tuple[str, str], ShardSet] = {}
    for name in names:
        match = _NUMBERED.fullmatch(name) or _TORCHTUNE.fullmatch(name)
        if match is not None:
            total = match.groupdict().get("total")
            key = match["before"], match["after"]
            found = sets.setdefault(key, ShardSet(*key, None if total is None else int(total)))
            found.names[int(match["number"])] = name
    return list(sets.values())


def set_of(name: str, names: Sequence[str]) -> ShardSet | None:
    """The set that a name belongs to, with those of `names` that belong to it, too."""
    return next((found for found in shard_sets([*names, name]) if name in found.names.values()), None)


def only_set(names: Sequence[str]) -> ShardSet | None:
    """The set that all of these names belong to, complete or not; None if they are not of one set."""
    sets = shard_sets(names)
    return sets[0] if len(sets) == 1 and len(sets[0].names) == len(names) else None
