"""Paths as users write them: `~` for the home folder, and names that are nearly right."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path
from typing import overload

from deltarank.system.suggestions import did_you_mean, near_names

_MOST_SIBLINGS = 10_000
"""In a larger folder the nearest name is looked for among this many."""


@overload
def expand_home(path: None) -> None: ...
@overload
def expand_home(path: str | os.PathLike[str]) -> str: ...
def expand_home(path: str | os.PathLike[str] | None) -> str | None:
    """The path with a leading `~` or `~user` replaced by the home folder, as a shell does. None stays None."""
    # Not Path.expanduser, which raises for a user that does not exist, and drops the end of `org/name/`.
    return None if path is None else os.path.expanduser(os.fspath(path))  # noqa: PTH111


def user_path(path: str | os.PathLike[str]) -> Path:
    """The path that a user named: a leading `~` stands for the home folder."""
    return Path(expand_home(path))


def nearest_path(path: str | os.PathLike[str]) -> Path | None:
    """An existing path whose spelling is near that of one that does not exist; None if there is none."""
    wanted = Path(path)
    try:
        for above in wanted.parents:
            if above.is_dir():
                return _nearest_below(above, wanted.relative_to(above).parts)
    except (OSError, ValueError):  # a folder that may not be entered, or a path with a NUL
        return None
    return None


def nearest_path_in_words(path: str | os.PathLike[str]) -> str:
    """A question that offers the nearest path, with a space before it; empty if there is none."""
    near = nearest_path(path)
    return did_you_mean([] if near is None else [str(near)])


def _nearest_below(folder: Path, parts: tuple[str, ...]) -> Path | None:
    with os.scandir(folder) as entries:
        names = (entry.name for entry in islice(entries, _MOST_SIBLINGS) if Path(entry).exists())  # no broken link
        near = near_names(parts[0], names, most=1)
    if not near:
        return None
    found = folder / near[0]
    if (target := found.joinpath(*parts[1:])).exists():
        return target
    return (_nearest_below(found, parts[1:]) if found.is_dir() else None) or found
