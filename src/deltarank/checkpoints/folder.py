"""Which files of a folder are the weights, chosen by their names; only a shard index is read."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from deltarank.checkpoints.escape import quoted
from deltarank.checkpoints.file_errors import unreadable_because
from deltarank.checkpoints.formats.gguf import GGUF_SUFFIX
from deltarank.checkpoints.formats.shard_index import BIN_INDEX_SUFFIX, INDEX_SUFFIX, MAX_INDEX, parse_index
from deltarank.checkpoints.formats.torch_pickle import PICKLE_SUFFIXES
from deltarank.errors import CheckpointError, HeaderError
from deltarank.results import listing

SINGLE = "model.safetensors"
SAFETENSORS = ".safetensors"
_INDEX = "model" + INDEX_SUFFIX
_PICKLED_SINGLE = "pytorch_model.bin"
_NUMBERED = re.compile(r"(?P<stem>.*)-(?P<number>\d{5,6})-of-(?P<total>\d{5,6})\.(?P<kind>safetensors|bin|gguf)")


@dataclass(frozen=True)
class WeightFiles:
    """Files relative to `folder`; `owners` maps tensors to files as the shard index does."""

    folder: Path
    names: tuple[str, ...]
    owners: Mapping[str, str] = field(default_factory=dict)


def find_weights(path: Path) -> WeightFiles:
    """The weights of a folder, of a single file, or of a shard index.

    In a folder: `model.safetensors`, else the shards of the only index, else the only safetensors file, else the only
    complete set of numbered shards. Without any safetensors: the only GGUF file, or PyTorch's `.bin` by the same rules.

    Raises:
        CheckpointError: there are none, or several.
        HeaderError: the index is invalid, or names a file that is missing or outside the folder.
    """
    if path.is_dir():
        return _in_folder(path)
    if path.name.endswith((INDEX_SUFFIX, BIN_INDEX_SUFFIX)):
        return _shards_of(path)
    if path.suffix == GGUF_SUFFIX:
        return WeightFiles(path.parent, _gguf_parts(path.name, _file_names(path.parent)))
    if path.suffix != SAFETENSORS and path.suffix.lower() not in PICKLE_SUFFIXES:
        _refuse(f"{quoted(path, max_length=300)} is not in a supported file format.", "bad-format")
    return WeightFiles(path.parent, (path.name,))


def choose_safetensors(folder: Path, names: Collection[str], owners: Mapping[str, str]) -> WeightFiles | None:
    """The weights among the safetensors files of these names, on this machine or on the Hub; None if it is not clear.

    `owners` is the content of the folder's shard index; empty without one. Adapters are not weights.
    """
    if SINGLE in names:
        return WeightFiles(folder, (SINGLE,))
    if owners:
        return WeightFiles(folder, tuple(sorted(set(owners.values()))), owners)
    top = sorted(name for name in names if name.endswith(SAFETENSORS) and "/" not in name and not _is_adapter(name))
    return WeightFiles(folder, tuple(top)) if len(top) == 1 or _is_complete_set(top) else None


def read_owners(folder: Path) -> dict[str, str]:
    """The content of the index to follow: `model.safetensors.index.json`, else the only one; empty without one.

    Raises:
        HeaderError: the index is invalid, or names a file outside its folder.
    """
    paths = sorted(path for path in folder.glob("*" + INDEX_SUFFIX) if not path.is_dir())
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


def _in_folder(folder: Path) -> WeightFiles:
    names = _file_names(folder)
    weights = choose_safetensors(folder, names, {} if SINGLE in names else read_owners(folder))
    if weights is not None:
        return _checked(weights)
    safetensors = [name for name in names if name.endswith(SAFETENSORS)]
    gguf = [name for name in names if name.endswith(GGUF_SUFFIX)]
    if not safetensors and gguf and list(_gguf_parts(gguf[0], names)) == gguf:
        return WeightFiles(folder, tuple(gguf))
    if not safetensors and (pickled := _pickled(folder, names)) is not None:
        return pickled
    return _refuse_folder(folder, names, safetensors)


def _is_adapter(name: str) -> bool:
    return name.startswith("adapter_")


def _gguf_parts(name: str, names: Sequence[str]) -> tuple[str, ...]:
    """A GGUF file, with the other parts of the complete set that it belongs to, if any."""
    match = _NUMBERED.fullmatch(name)
    if match is None:
        return (name,)
    parts = [m.string for other in names if (m := _NUMBERED.fullmatch(other)) and _set_of(m) == _set_of(match)]
    return tuple(parts) if _is_complete_set(parts) else (name,)


def _set_of(match: re.Match[str]) -> tuple[str, str, str]:
    return match["stem"], match["total"], match["kind"]


def _pickled(folder: Path, names: Sequence[str]) -> WeightFiles | None:
    """Weights under the names that transformers gives; other pickles may be arguments or optimizer states."""
    indexes = [name for name in names if name.endswith(BIN_INDEX_SUFFIX)]
    files = [name for name in names if name.startswith(("pytorch_model", "model")) and name.endswith(".bin")]
    if _PICKLED_SINGLE in names:
        return WeightFiles(folder, (_PICKLED_SINGLE,))
    if len(indexes) == 1:
        return _shards_of(folder / indexes[0])
    return WeightFiles(folder, tuple(files)) if len(files) == 1 or _is_complete_set(files) else None


def _file_names(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir() if not entry.is_dir())
    except OSError as error:
        raise unreadable_because(folder, error) from None


def _is_complete_set(names: Sequence[str]) -> bool:
    """All of model-00001-of-00003 to model-00003-of-00003, and nothing else."""
    matches = [match for match in map(_NUMBERED.fullmatch, names) if match]
    if not matches or len(matches) != len(names) or len(set(map(_set_of, matches))) != 1:
        return False
    return sorted(int(m["number"]) for m in matches) == list(range(1, int(matches[0]["total"]) + 1))


def _shards_of(index: Path) -> WeightFiles:
    owners = parse_index(_read_index(index), file=index.name)
    return _checked(WeightFiles(index.parent, tuple(sorted(set(owners.values()))), owners))


def _checked(weights: WeightFiles) -> WeightFiles:
    shards = weights.names if weights.owners else ()
    refuse_missing_shards(
        [name for name in shards if not (weights.folder / name).exists()],
        place=f"in {quoted(weights.folder, max_length=300)}",
        cure="Finish the download or copy: every file that the index names must be in the same folder.",
    )
    return weights


def _read_index(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(
                min(os.fstat(file.fileno()).st_size, MAX_INDEX) + 1
            )  # read() allocates what it is asked for
    except OSError as error:
        raise unreadable_because(path, error) from None


def _refuse_folder(folder: Path, names: Sequence[str], safetensors: Sequence[str]) -> NoReturn:
    shown = quoted(folder, max_length=300)
    if safetensors and all(map(_is_adapter, safetensors)):
        raise CheckpointError(
            f"{shown} contains an adapter ({quoted(safetensors[0])}), not a whole checkpoint.",
            cure="`compare`, `extract` and `verify` accept it as FINETUNE if its folder has adapter_config.json. "
            "Elsewhere, merge it first (PEFT: `merge_and_unload`, then `save_pretrained`) and give that folder.",
            slug="adapter-not-checkpoint",
        )
    pickled = [name for name in names if Path(name).suffix.lower() in PICKLE_SUFFIXES]
    for files, problem in (
        (safetensors, "several safetensors files, and no index that says which belong together"),
        (pickled, "no safetensors file, and pickled files whose names do not say which are the weights"),
    ):
        if files:
            raise CheckpointError(
                f"{shown} contains {problem}: {listing([quoted(name) for name in files], most=4)}.",
                cure="Give the path of the weights file.",
                slug="several-checkpoints",
            )
    _refuse(f"{shown} contains no safetensors file.", "no-weights")


def _refuse(message: str, slug: str) -> NoReturn:
    raise CheckpointError(
        message,
        cure="Give a folder that contains `model.safetensors`, or shards and their index; or give one weights file.",
        slug=slug,
    )
