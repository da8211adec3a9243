"""`--include` and `--exclude`: which tensors a user wants measured."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterable, Sequence
from enum import Enum

from deltarank.checkpoints.escape import shown
from deltarank.errors import UsageError
from deltarank.results import listing

# What near names are sought among: comparing texts is slow, and a stranger chose their number and length.
_MOST_NAMES = 2000
_LONGEST_NAME = 200


class Choice(Enum):
    """A tensor that was asked for is measured even if it is a vector or an embedding."""

    LEFT_OUT = "left out"
    DEFAULT = "default"
    ASKED = "asked"


class Selection:
    """Globs over names. Each glob is held against the name in the finetune, the name in the base, and the module.

    `*` matches any text, dots too; `?` one character; `[ab]` one of several. Case matters. Exclusion wins.
    """

    def __init__(self, include: Sequence[str], exclude: Sequence[str]) -> None:
        self._include = [_compiled(glob) for glob in include]
        self._exclude = [_compiled(glob) for glob in exclude]
        self._unmet = dict.fromkeys((*include, *exclude))

    def choose(self, names: Sequence[str]) -> Choice:
        """What the globs say of a tensor that goes by these names."""
        included = self._met(self._include, names)
        if self._met(self._exclude, names) or (self._include and not included):
            return Choice.LEFT_OUT
        return Choice.ASKED if included else Choice.DEFAULT

    def _met(self, globs: Sequence[tuple[str, re.Pattern[str]]], names: Sequence[str]) -> bool:
        met = [glob for glob, pattern in globs if any(pattern.match(name) for name in names)]
        for glob in met:
            self._unmet.pop(glob, None)
        return bool(met)

    def refuse_unmet(self, names: Iterable[str], modules: Iterable[str]) -> None:
        """To be called when every tensor has been held against the globs.

        Raises:
            UsageError: (slug "glob-matches-nothing") a glob matched none of them; the cure lists near names.
        """
        if not self._unmet:
            return
        glob = next(iter(self._unmet))
        near = _near(glob, _short(modules), _short(names))
        raise UsageError(
            f"{shown(glob)} matches no tensor of these checkpoints.",
            cure=f"{near} Globs are held against whole names, so most "
            "begin with *, and a shell wants them in quotes: '*down_proj*'.",
            slug="glob-matches-nothing",
        )


def _compiled(glob: str) -> tuple[str, re.Pattern[str]]:
    return glob, re.compile(fnmatch.translate(glob))


def _short(names: Iterable[str]) -> list[str]:
    return sorted({name for name in names if len(name) <= _LONGEST_NAME})[:_MOST_NAMES]


def _near(glob: str, modules: Sequence[str], names: Sequence[str]) -> str:
    """Modules are few and their names short; whole names help who wrote a whole name."""
    core = re.sub(r"[*?\[\]]+", "", glob[:_LONGEST_NAME]).strip(".").removesuffix(".weight")
    leaves = {module.rsplit(".", 1)[-1].lower(): module for module in reversed(modules)}
    found = difflib.get_close_matches(core, modules, n=3, cutoff=0.5)
    found += [leaves[leaf] for leaf in difflib.get_close_matches(core.rsplit(".", 1)[-1].lower(), leaves, n=2)]
    if core.count(".") > 1:
        found += difflib.get_close_matches(core, names, n=2, cutoff=0.7)
    word, known = ("Near it", list(dict.fromkeys(found))) if found else ("Modules", list(modules))
    return f"{word}: {listing([shown(name) for name in known])}."
