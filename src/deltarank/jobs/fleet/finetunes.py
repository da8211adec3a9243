"""The finetunes of a fleet: what the user listed, each once, and the name of its folder."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from deltarank.checkpoints import finetunes_in
from deltarank.errors import UsageError
from deltarank.results import run_name
from deltarank.runtime import Ref
from deltarank.system import user_path

RESERVED_NAMES = frozenset(
    {"fleet.json", "fleet.csv", "fleet.parquet", "run.json", "matrices.jsonl", "results.json", "report.html"}
)
"""Files of the fleet's folder."""

MOST_FOLDERS_ABOVE = 4


@dataclass(frozen=True)
class Listed:
    """A finetune to measure.

    name       of its folder below the fleet's
    reference  as the user wrote it, or the path of a folder below the one that was written
    """

    name: str
    reference: str

    @property
    def key(self) -> str:
        return key_of(self.reference)


def key_of(reference: Ref) -> str:
    """Equal for two references to one finetune: of a local one its path without links."""
    path = user_path(reference)
    return str(path.resolve()) if path.exists() else os.fspath(reference).strip("/")


def list_finetunes(references: Sequence[Ref], known: Mapping[str, str]) -> tuple[list[Listed], list[str]]:
    """Each finetune once, and notes on those that were given again. A folder of several is replaced by them.

    Args:
        known: the names that were given before, by `key_of`.

    Raises:
        UsageError: (slug "no-finetunes") the list is empty.
    """
    if isinstance(references, str | os.PathLike) or not references:
        raise UsageError(
            "No finetune was given.",
            cure="Name the finetunes after the base, or in a file: --list finetunes.txt.",
            slug="no-finetunes",
        )
    expanded = [each for reference in references for each in _expanded(os.fspath(reference))]
    first: dict[str, str] = {}
    notes = []
    for reference in expanded:
        if (before := first.setdefault(key_of(reference), reference)) is not reference:
            also = "" if before == reference else f" (first as {before})"
            notes.append(f"{reference} is listed more than once{also}: it is measured once")
    names = {key: known[key] for key in first if key in known}
    new = [reference for key, reference in first.items() if key not in names]
    taken = {name.casefold() for name in known.values()} | RESERVED_NAMES
    names |= {key_of(reference): name for reference, name in _named(new, taken).items()}
    return [Listed(names[key], reference) for key, reference in first.items()], list(dict.fromkeys(notes))


def _expanded(reference: str) -> list[str]:
    path = user_path(reference)
    found = finetunes_in(path) if path.is_dir() else [path]
    return [reference] if len(found) == 1 else [str(each) for each in found]


def _named(references: Sequence[str], taken: Collection[str]) -> dict[str, str]:
    """The usual names of runs. Where several would have one name, each begins with more of the folders above."""
    above = dict.fromkeys(references, 0)
    for _ in range(MOST_FOLDERS_ABOVE):
        names = {each: run_name(each, above=above[each]) for each in references}
        uses = Counter(name.casefold() for name in names.values())
        for each, name in names.items():
            above[each] += uses[name.casefold()] > 1 or name.casefold() in taken
    return dict(_numbered({each: run_name(each, above=above[each]) for each in references}, set(taken)))


def _numbered(names: Mapping[str, str], taken: set[str]) -> Iterator[tuple[str, str]]:
    """What still has the name of another gets a number."""
    for reference, name in names.items():
        number, unique = 2, name
        while unique.casefold() in taken:
            number, unique = number + 1, f"{name}-{number}"
        taken.add(unique.casefold())
        yield reference, unique
