"""Which files of a folder are the weights, chosen by their names; only a shard index is read."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn

from deltarank.checkpoints.escape import quoted
from deltarank.checkpoints.file_errors import unreadable_because
from deltarank.checkpoints.formats.gguf import GGUF_SUFFIX
from deltarank.checkpoints.formats.shard_index import BIN_INDEX_SUFFIX, INDEX_SUFFIX, MAX_INDEX, parse_index
from deltarank.checkpoints.formats.torch_pickle import PICKLE_SUFFIXES
from deltarank.checkpoints.hub_cache import hub_id, unfinished_blobs
from deltarank.checkpoints.other_formats import (
    is_other_format,
    refuse_file_by_name,
    refuse_folder_by_names,
    refuse_parallel_parts,
    unfinished,
)
from deltarank.checkpoints.shard_sets import only_set, set_of, shard_sets
from deltarank.checkpoints.subfolders import models_below, names_below, refuse_several
from deltarank.checkpoints.unread_weights import notes_on_unread
from deltarank.checkpoints.weight_names import (
    ADAPTER_CONFIG,
    SAFETENSORS,
    gguf_weights,
    is_adapter,
    is_leftover,
    pickled_weights,
    safetensors_weights,
)
from deltarank.errors import CheckpointError, HeaderError
from deltarank.results import listing

SINGLE = "model.safetensors"
_INDEX = "model" + INDEX_SUFFIX
_PICKLED_SINGLE = "pytorch_model.bin"
_PICKLED_NAMES = ("pytorch_model", "model")
_CURE = "Give a folder that contains `model.safetensors`, or shards and their index; or give one weights file."


@dataclass(frozen=True)
class WeightFiles:
    """Files relative to `folder`, which also holds config.json.

    owners       which file holds which tensor, as the shard index says
    unread       the content of a shard index that lies beside the one file that is read
    notes        what the user should know of the choice
    """

    folder: Path
    names: tuple[str, ...]
    owners: Mapping[str, str] = field(default_factory=dict)
    unread: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def find_weights(path: Path) -> WeightFiles:
    """The weights of a folder, of a single file, or of a shard index.

    In a folder: `model.safetensors`, else the shards of the only index, else the only safetensors file, else the only
    complete set of numbered shards. Without any safetensors: the only GGUF file, or PyTorch's `.bin` by the same rules.
    If the folder holds nothing of this, the only folder below it that does.

    Raises:
        CheckpointError: there are none, or several, or they are in a format that is not read.
        HeaderError: the index is invalid, or names a file that is missing or outside the folder; or shards are missing.
    """
    if path.is_dir():
        return _in_folder(path)
    if path.name.endswith((INDEX_SUFFIX, BIN_INDEX_SUFFIX)):
        return _shards_of(path)
    refuse_file_by_name(path)
    if path.suffix not in (SAFETENSORS, GGUF_SUFFIX) and path.suffix.lower() not in PICKLE_SUFFIXES:
        raise CheckpointError(
            f"{quoted(path, max_length=300)} is not in a supported file format.", cure=_CURE, slug="bad-format"
        )
    return _single_file(path)


def choose_safetensors(folder: Path, names: Collection[str], owners: Mapping[str, str]) -> WeightFiles | None:
    """The weights among the safetensors files of these names, on this machine or on the Hub; None if it is not clear.

    `owners` is the content of the folder's shard index; empty without one. Adapters are not weights.

    Raises:
        HeaderError: (slug "missing-shard") they are an incomplete set of numbered shards.
    """
    if SINGLE in names:
        unread = owners if set(owners.values()) != {SINGLE} else {}
        return _with_unread(WeightFiles(folder, (SINGLE,), unread=unread), names)
    if owners:
        for found in shard_sets(set(owners.values())):
            found.refuse_incomplete(place="named by the shard index")
        return _with_unread(WeightFiles(folder, tuple(sorted(set(owners.values()))), owners), names)
    return _one_or_complete(folder, sorted(safetensors_weights(names)))


def _with_unread(weights: WeightFiles, names: Collection[str]) -> WeightFiles:
    """A note of other safetensors files."""
    read = {*weights.names, *weights.unread.values()}
    others = sorted(name for name in safetensors_weights(names) if name not in read)
    if not others:
        return weights
    verb = "is" if len(others) == 1 else "are"
    read_name = quoted(weights.names[0]) if len(weights.names) == 1 else "what the shard index names"
    note = f"{read_name} is read; {listing([quoted(name) for name in others], most=3)} beside it {verb} not"
    return replace(weights, notes=(*weights.notes, note))


def _one_or_complete(folder: Path, names: Sequence[str]) -> WeightFiles | None:
    """The only file, or the files of the only set of numbered ones, which must be complete."""
    refuse_parallel_parts(folder, names)
    found = only_set(names)
    if found is not None:
        found.refuse_incomplete()
        return WeightFiles(folder, found.files)
    return WeightFiles(folder, tuple(names)) if len(names) == 1 else None


def read_owners(folder: Path) -> dict[str, str]:
    """The content of the index to follow: `model.safetensors.index.json`, else the only one; empty without one.

    Raises:
        HeaderError: the index is invalid, or names a file outside its folder.
    """
    paths = sorted(path for path in folder.glob("*" + INDEX_SUFFIX) if not path.is_dir() and not is_leftover(path.name))
    paths = [path for path in paths if path.name == _INDEX] or paths
    return parse_index(_read_index(paths[0]), file=paths[0].name) if len(paths) == 1 else {}


def refuse_missing_shards(missing: Sequence[str], *, place: str, cure: str) -> None:
    """Raises:
    HeaderError: (slug "missing-shard") there are some.
    """
    if missing:
        names = listing([quoted(name) for name in missing], most=3)
        raise HeaderError(
            f"The shard index names {names}, which {'is' if len(missing) == 1 else 'are'} not {place}.",
            cure=cure,
            slug="missing-shard",
        )


def _single_file(path: Path) -> WeightFiles:
    """A file that the user names, with the other parts of the set that it is a part of."""
    names = _file_names(path.parent)
    if path.name == "consolidated.00.pth":
        refuse_parallel_parts(path.parent, names)
    found = set_of(path.name, names)
    if found is None or (found.files == (path.name,) and not found.missing):
        return WeightFiles(path.parent, (path.name,))
    found.refuse_incomplete()
    note = f"{quoted(path.name)} is {found.part(path.name)}; all parts in its folder are read"
    return WeightFiles(path.parent, found.files, notes=(note,))


def _in_folder(folder: Path) -> WeightFiles:
    names = _file_names(folder)
    weights = choose_safetensors(folder, names, read_owners(folder)) or _other_than_safetensors(folder, names)
    if weights is None:
        return _below(folder, names)
    _refuse_unfinished(folder, [name for name in unfinished(names) if name.startswith(weights.names)])
    read = {*weights.names, *weights.unread.values()}
    return _checked(replace(weights, notes=(*weights.notes, *notes_on_unread(folder, read, names))))


def _other_than_safetensors(folder: Path, names: Sequence[str]) -> WeightFiles | None:
    safetensors, gguf = safetensors_weights(names), gguf_weights(names)
    if safetensors:
        _refuse_several(folder, safetensors, "several safetensors files, and no index that says which belong together")
    if gguf:
        weights = _one_or_complete(folder, gguf)
        return weights or _refuse_several(folder, gguf, "several GGUF files")
    refuse_parallel_parts(folder, names)
    return _pickled(folder, [name for name in pickled_weights(names) if not is_other_format(name)], names)


def _pickled(folder: Path, pickled: Sequence[str], names: Sequence[str]) -> WeightFiles | None:
    """Weights under the names that transformers gives, else the only pickled file or set that may be weights."""
    indexes = [name for name in names if name.endswith(BIN_INDEX_SUFFIX) and not is_leftover(name)]
    owners = parse_index(_read_index(folder / indexes[0]), file=indexes[0]) if len(indexes) == 1 else {}
    if _PICKLED_SINGLE in pickled:
        unread = owners if set(owners.values()) != {_PICKLED_SINGLE} else {}
        return WeightFiles(folder, (_PICKLED_SINGLE,), unread=unread)
    if owners:
        return WeightFiles(folder, tuple(sorted(set(owners.values()))), owners)
    usual = [name for name in pickled if name.startswith(_PICKLED_NAMES) and name.endswith(".bin")]
    weights = _one_or_complete(folder, usual) or _one_or_complete(folder, pickled)
    if weights is None and pickled:
        _refuse_several(
            folder, pickled, "no safetensors file, and pickled files whose names do not say which are the weights"
        )
    return weights


def _file_names(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir() if not entry.is_dir())
    except OSError as error:
        raise unreadable_because(folder, error) from None


def _shards_of(index: Path) -> WeightFiles:
    owners = parse_index(_read_index(index), file=index.name)
    return _checked(WeightFiles(index.parent, tuple(sorted(set(owners.values()))), owners))


def _checked(weights: WeightFiles) -> WeightFiles:
    shards = weights.names if weights.owners else ()
    missing = [name for name in shards if not (weights.folder / name).exists()]
    cure = "Finish the download or copy: every file that the index names must be in the same folder."
    if missing and (complete := _complete_set(weights.folder)):
        cure = f"{quoted(complete)} and the other parts of its set are there: to read these, give the path of this one."
    refuse_missing_shards(missing, place=f"in {quoted(weights.folder, max_length=300)}", cure=cure)
    return weights


def _complete_set(folder: Path) -> str | None:
    """The first part of the only complete set of numbered files, which another index may have been left beside."""
    complete = [found for found in shard_sets(_file_names(folder)) if not found.missing]
    return complete[0].files[0] if len(complete) == 1 else None


def _read_index(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(
                min(os.fstat(file.fileno()).st_size, MAX_INDEX) + 1
            )  # read() allocates what it is asked for
    except OSError as error:
        raise unreadable_because(path, error) from None


def _below(folder: Path, names: Sequence[str]) -> WeightFiles:
    """The weights in the only folder below this one that has some. Without a config.json there, this one's counts."""
    if any(map(is_adapter, names)):
        _refuse_adapter(folder, next(filter(is_adapter, names)))
    found = models_below(folder)
    refuse_several(folder, found)
    if not found:
        _refuse_empty(folder, names)
    inner = found[0].path
    if not found[0].has_weights:
        _refuse_adapter(inner, ADAPTER_CONFIG)
    weights = find_weights(inner)
    below = inner.relative_to(folder)
    notes = (*weights.notes, f"the weights are in {quoted(below)}, the only folder with weights below {quoted(folder)}")
    if (inner / "config.json").exists() or not (folder / "config.json").exists():
        return replace(weights, notes=notes)
    return WeightFiles(
        folder,
        tuple(f"{below.as_posix()}/{name}" for name in weights.names),
        {tensor: f"{below.as_posix()}/{name}" for tensor, name in weights.owners.items()},
        {tensor: f"{below.as_posix()}/{name}" for tensor, name in weights.unread.items()},
        notes,
    )


def _refuse_adapter(folder: Path, name: str) -> NoReturn:
    raise CheckpointError(
        f"{quoted(folder, max_length=300)} contains an adapter ({quoted(name)}), not a whole checkpoint.",
        cure="`compare`, `extract` and `verify` accept it as FINETUNE if its folder has adapter_config.json. "
        "To measure the adapter as a candidate, use `outputs BASE FINETUNE --adapter DIR`. "
        "Elsewhere, merge it first (PEFT: `merge_and_unload`, then `save_pretrained`) and give that folder.",
        slug="adapter-not-checkpoint",
    )


def _refuse_several(folder: Path, files: Sequence[str], problem: str) -> NoReturn:
    raise CheckpointError(
        f"{quoted(folder, max_length=300)} contains {problem}: {listing([quoted(name) for name in files], most=4)}.",
        cure="Give the path of the weights file.",
        slug="several-checkpoints",
    )


def _refuse_empty(folder: Path, names: Sequence[str]) -> NoReturn:
    """Without weights here or below: by the names of what there is."""
    shown = quoted(folder, max_length=300)
    _refuse_unfinished(folder, [*unfinished(names), *unfinished_blobs(folder)])
    refuse_folder_by_names(folder, [*names, *names_below(folder)])
    config = " It has a config.json, but the weights are missing." if "config.json" in names else ""
    raise CheckpointError(
        f"{shown} contains no safetensors file, no GGUF file and no PyTorch file (`.bin`, `.pt`, `.pth`, `.ckpt`)."
        f"{config}",
        cure=_CURE,
        slug="no-weights",
    )


def _refuse_unfinished(folder: Path, downloads: Sequence[str]) -> None:
    if downloads:
        raise CheckpointError(
            f"{quoted(folder, max_length=300)} contains a download that did not finish ({quoted(downloads[0])}).",
            cure=f"Finish it: `hf download {hub_id(folder) or 'org/name'}` continues where it stopped.",
            slug="unfinished-download",
        )
