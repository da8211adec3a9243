"""Which files of a folder are the weights. Nothing of them is read but a shard index."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from deltarank.checkpoints.escape import shown
from deltarank.checkpoints.formats.gguf import SUFFIX as GGUF
from deltarank.checkpoints.formats.shard_index import MAX_INDEX, PICKLED_SUFFIX, SUFFIX, parse_index
from deltarank.checkpoints.formats.torch_pickle import SUFFIXES as PICKLED
from deltarank.checkpoints.source import unreadable
from deltarank.errors import CheckpointError, HeaderError
from deltarank.results import listing

SINGLE = "model.safetensors"
INDEX = "model" + SUFFIX
_SUFFIX = ".safetensors"
_PICKLED_SINGLE = "pytorch_model.bin"
_NUMBERED = re.compile(r"(?P<stem>.*)-(?P<number>\d{5,6})-of-(?P<total>\d{5,6})\.(?P<kind>safetensors|bin|gguf)")


@dataclass(frozen=True)
class Weights:
    """Files relative to `folder`; `owners` is the index's word on which file holds which tensor."""

    folder: Path
    files: tuple[str, ...]
    owners: Mapping[str, str] = field(default_factory=dict)


def find_weights(path: Path) -> Weights:
    """The weights of a folder, of a single file, or of an index.

    In a folder: `model.safetensors`, else the one index and its shards, else the one safetensors file, else the one
    complete set of numbered shards. If there is no safetensors at all, the one GGUF file, or torch's `.bin` by the same
    rules.

    Raises:
        CheckpointError: there are none, or there are several.
        HeaderError: the index is broken, or names a file that is missing or outside the folder.
    """
    if path.is_dir():
        return _in_folder(path)
    if path.name.endswith((SUFFIX, PICKLED_SUFFIX)):
        return _from_index(path)
    if path.suffix == GGUF:
        return Weights(path.parent, _gguf_parts(path.name, _file_names(path.parent)))
    if path.suffix != _SUFFIX and path.suffix.lower() not in PICKLED:
        _refuse(f"{shown(path, most=300)} is not a file of weights that is read here.", "bad-format")
    return Weights(path.parent, (path.name,))


def _in_folder(folder: Path) -> Weights:
    names = _file_names(folder)
    if SINGLE in names:
        return Weights(folder, (SINGLE,))
    indexes = [name for name in names if name.endswith(SUFFIX)]
    if INDEX in indexes or len(indexes) == 1:
        return _from_index(folder / (INDEX if INDEX in indexes else indexes[0]))
    weights = [name for name in names if name.endswith(_SUFFIX)]
    if len(weights) == 1 and not weights[0].startswith("adapter_"):
        return Weights(folder, (weights[0],))
    if is_complete_set(weights):
        return Weights(folder, tuple(weights))
    parts = [name for name in names if name.endswith(GGUF)]
    if not weights and parts and list(_gguf_parts(parts[0], names)) == parts:
        return Weights(folder, tuple(parts))
    if not weights and (pickled := _pickled(folder, names)) is not None:
        return pickled
    return _refuse_folder(folder, names, weights)


def _gguf_parts(name: str, names: Sequence[str]) -> tuple[str, ...]:
    """A GGUF file, with its sisters if it is one of a complete set."""
    match = _NUMBERED.fullmatch(name)
    if match is None:
        return (name,)
    sisters = [m.string for other in names if (m := _NUMBERED.fullmatch(other)) and _set_of(m) == _set_of(match)]
    return tuple(sisters) if is_complete_set(sisters) else (name,)


def _set_of(match: re.Match[str]) -> tuple[str, str, str]:
    return match["stem"], match["total"], match["kind"]


def _pickled(folder: Path, names: Sequence[str]) -> Weights | None:
    """By the names that transformers gives: other pickles of a folder are arguments or states of optimisers."""
    indexes = [name for name in names if name.endswith(PICKLED_SUFFIX)]
    files = [name for name in names if name.startswith(("pytorch_model", "model")) and name.endswith(".bin")]
    if _PICKLED_SINGLE in names:
        return Weights(folder, (_PICKLED_SINGLE,))
    if len(indexes) == 1:
        return _from_index(folder / indexes[0])
    return Weights(folder, tuple(files)) if len(files) == 1 or is_complete_set(files) else None


def _file_names(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir() if not entry.is_dir())
    except OSError as error:
        raise unreadable(folder, error.strerror or str(error)) from None


def is_complete_set(names: Sequence[str]) -> bool:
    """model-00001-of-00003 and its two sisters, and nothing else."""
    matches = [_NUMBERED.fullmatch(name) for name in names]
    found = [m for m in matches if m]
    if not found or len(found) != len(names) or len({_set_of(m) for m in found}) != 1:
        return False
    return sorted(int(m["number"]) for m in found) == list(range(1, int(found[0]["total"]) + 1))


def _from_index(path: Path) -> Weights:
    owners = parse_index(_read_index(path), file=path.name)
    files = tuple(sorted(set(owners.values())))
    missing = [name for name in files if not (path.parent / name).exists()]
    if missing:
        raise HeaderError(
            f"{shown(path.name)} names {listing([shown(name) for name in missing], most=3)}, "
            f"and {'it is' if len(missing) == 1 else 'they are'} not there.",
            cure="Finish the download or copy: all files that the index names belong beside it.",
            slug="missing-shard",
        )
    return Weights(path.parent, files, owners)


def _read_index(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(min(os.fstat(file.fileno()).st_size, MAX_INDEX) + 1)  # what is asked for is allocated
    except OSError as error:
        raise unreadable(path, error.strerror or str(error)) from None


def _refuse_folder(folder: Path, names: Sequence[str], weights: Sequence[str]) -> NoReturn:
    if weights and all(name.startswith("adapter_") for name in weights):
        raise CheckpointError(
            f"{shown(folder, most=300)} holds an adapter ({shown(weights[0])}), not a whole checkpoint.",
            cure="`compare`, `extract` and `verify` read it as FINETUNE, with its adapter_config.json, on the base "
            "given. Elsewhere merge it first (PEFT: `merge_and_unload`, then `save_pretrained`), and give that folder.",
            slug="adapter-not-checkpoint",
        )
    if weights:
        raise CheckpointError(
            f"{shown(folder, most=300)} holds several safetensors files and no index that says which belong together: "
            f"{listing([shown(name) for name in weights], most=4)}.",
            cure="Name the file that is meant.",
            slug="several-checkpoints",
        )
    pickled = [name for name in names if Path(name).suffix.lower() in PICKLED]
    if pickled:
        raise CheckpointError(
            f"{shown(folder, most=300)} holds no safetensors file, and pickled ones of names that tell nothing: "
            f"{listing([shown(name) for name in pickled], most=4)}.",
            cure="Name the file that is meant.",
            slug="several-checkpoints",
        )
    _refuse(f"{shown(folder, most=300)} holds no safetensors file.", "no-weights")


def _refuse(message: str, slug: str) -> NoReturn:
    raise CheckpointError(
        message,
        cure="Give a folder with `model.safetensors`, or with shards and their index, or one file of weights.",
        slug=slug,
    )
