"""Models in the folders below one that holds none itself: `checkpoint-500/`, `epoch_0/`, `pytorch_model.bin/`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from deltarank.checkpoints.escape import quoted
from deltarank.checkpoints.other_formats import is_other_format
from deltarank.checkpoints.weight_names import (
    ADAPTER_CONFIG,
    gguf_weights,
    is_adapter,
    pickled_weights,
    safetensors_weights,
)
from deltarank.errors import CheckpointError
from deltarank.results import listing

MAX_DEPTH = 3
MAX_NAMES = 10_000
MAX_FOLDERS = 1000
"""Folders that are looked into: what the user gave may be a home folder."""


@dataclass(frozen=True)
class Subfolder:
    """A folder below the one that was given, and what is in it."""

    path: Path
    has_weights: bool
    has_adapter: bool


def models_below(folder: Path) -> list[Subfolder]:
    """The folders below this one that hold weights or an adapter, by the names of their files; none inside another.

    A link to one of them, such as `latest`, is not another one.
    """
    found = [each for path in islice(_folders_below(folder, 1), MAX_FOLDERS) if (each := _model_in(path))]
    found.sort(key=lambda each: each.path.is_symlink())
    distinct = {each.path.resolve(): each for each in reversed(found)}
    return sorted(distinct.values(), key=lambda each: each.path)


def finetunes_in(folder: Path) -> list[Path]:
    """The models below a folder that holds none itself, if there are several; else the folder alone."""
    found = [] if _model_in(folder) else models_below(folder)
    return [each.path for each in found] if len(found) > 1 else [folder]


def adapter_folder(path: Path) -> Path:
    """The folder of an adapter, given that, a file in it, or a folder above it; `path` itself if there is none.

    Raises:
        CheckpointError: (slug "several-folders") several folders below this one hold an adapter.
    """
    if not path.is_dir():
        return path.parent if is_adapter(path.name) else path
    if any(is_adapter(inner.name) for inner in _listed(path, folders=False)):
        return path
    found = [each for each in models_below(path) if each.has_adapter]
    refuse_several(path, found, "adapter")
    return found[0].path if found else path


def _folders_below(folder: Path, depth: int) -> Iterator[Path]:
    for path in _listed(folder, folders=True):
        yield path
        if depth < MAX_DEPTH and _model_in(path) is None:
            yield from _folders_below(path, depth + 1)


def _model_in(folder: Path) -> Subfolder | None:
    names = [path.name for path in _listed(folder, folders=False)]
    found = Subfolder(folder, has_weights(names), ADAPTER_CONFIG in names)
    return found if found.has_weights or found.has_adapter else None


def _listed(folder: Path, *, folders: bool) -> list[Path]:
    """The folders, or the files, in a folder; none if it may not be read."""
    try:
        entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError:
        return []
    return [path for path in entries if path.is_dir() == folders]


def names_below(folder: Path) -> list[str]:
    """The folders in a folder, with a "/", and the files and folders in these, as relative paths."""
    inner = _listed(folder, folders=True)
    below = [path for each in inner for folders in (True, False) for path in _listed(each, folders=folders)]
    return [f"{path.relative_to(folder).as_posix()}{'/' * path.is_dir()}" for path in (*inner, *below[:MAX_NAMES])]


def has_weights(names: Sequence[str]) -> bool:
    pickled = [name for name in pickled_weights(names) if not is_other_format(name)]
    return bool(safetensors_weights(names) or gguf_weights(names) or pickled)


def refuse_several(folder: Path, found: Sequence[Subfolder], what: str = "weights") -> None:
    """Raises:
    CheckpointError: (slug "several-folders") there are several.
    """
    if len(found) > 1:
        names = listing([quoted(each.path.relative_to(folder)) for each in found], most=6)
        raise CheckpointError(
            f"{quoted(folder, max_length=300)} contains no {what} itself, but {len(found)} folders that do: {names}.",
            cure=f"Give the path of one of them, such as {quoted(found[-1].path, max_length=300)}.",
            slug="several-folders",
        )
