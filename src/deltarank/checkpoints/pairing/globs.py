"""`--include` and `--exclude`: which tensors the user wants measured."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from enum import Enum

from deltarank.checkpoints.escape import quoted
from deltarank.errors import UsageError
from deltarank.results import listing
from deltarank.system import compile_globs, near_names

# Limits of the search for near names, which is slow: a checkpoint's names are untrusted.
_MAX_NAMES = 2000
_MAX_NAME_LENGTH = 200


class Choice(Enum):
    """A requested matrix is measured even if it is an embedding or an output head."""

    EXCLUDED = "excluded"
    DEFAULT = "default"
    REQUESTED = "requested"


class Selection:
    """Globs matched against the finetune's name of a tensor, the base's name, and the module.

    `*` matches any text including dots; `?` one character; `[ab]` one of several. Case matters. Exclusion wins.
    """

    def __init__(self, include: Sequence[str], exclude: Sequence[str]) -> None:
        self._include = list(zip(include, compile_globs(include), strict=True))
        self._exclude = list(zip(exclude, compile_globs(exclude), strict=True))
        self._unmatched = dict.fromkeys((*include, *exclude))

    def choose(self, names: Sequence[str]) -> Choice:
        """What becomes of a tensor with these names."""
        included = self._matches(self._include, names)
        if self._matches(self._exclude, names) or (self._include and not included):
            return Choice.EXCLUDED
        return Choice.REQUESTED if included else Choice.DEFAULT

    def _matches(self, globs: Sequence[tuple[str, re.Pattern[str]]], names: Sequence[str]) -> bool:
        matching = [glob for glob, pattern in globs if any(pattern.match(name) for name in names)]
        for glob in matching:
            self._unmatched.pop(glob, None)
        return bool(matching)

    def refuse_unmatched(self, names: Iterable[str], modules: Iterable[str]) -> None:
        """To be called after `choose` was called for every tensor.

        Raises:
            UsageError: (slug "glob-matches-nothing") a glob matched none of them; the cure lists near names.
        """
        if not self._unmatched:
            return
        glob = next(iter(self._unmatched))
        near = _near_names(glob, _limited(modules), _limited(names))
        raise UsageError(
            f"{quoted(glob)} matches no tensor of these checkpoints.",
            cure=f"{near} Globs match whole names, so most begin with *; quote them in a shell: '*down_proj*'.",
            slug="glob-matches-nothing",
        )


def _limited(names: Iterable[str]) -> list[str]:
    return sorted({name for name in names if len(name) <= _MAX_NAME_LENGTH})[:_MAX_NAMES]


def _near_names(glob: str, modules: Sequence[str], names: Sequence[str]) -> str:
    """Near modules, which are few and short; near tensors if the glob looks like a whole name."""
    core = re.sub(r"[*?\[\]]+", "", glob[:_MAX_NAME_LENGTH]).strip(".").removesuffix(".weight")
    leaves = {module.rsplit(".", 1)[-1].lower(): module for module in reversed(modules)}
    near = near_names(core, modules, cutoff=0.5)
    near += [leaves[leaf] for leaf in near_names(core.rsplit(".", 1)[-1], leaves, most=2)]
    if core.count(".") > 1:
        near += near_names(core, names, most=2, cutoff=0.7)
    label, candidates = ("Similar names", list(dict.fromkeys(near))) if near else ("Modules", list(modules))
    return f"{label}: {listing([quoted(name) for name in candidates])}."
