"""A shard index (`model.safetensors.index.json`): which file holds which tensor. Text from a stranger, too."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from deltarank.checkpoints.escape import shown
from deltarank.errors import HeaderError

SUFFIX = ".safetensors.index.json"
PICKLED_SUFFIX = ".bin.index.json"
MAX_INDEX = 32_000_000
"""Bytes. 50,000 tensors with long names take about 6 MB."""


def parse_index(text: bytes, *, file: str) -> dict[str, str]:
    """Tensor name to file name, each file checked to lie inside the folder of the index.

    Raises:
        HeaderError: not the JSON of a shard index, or it names a file outside its folder.
    """
    weight_map = _weight_map(text, file)
    if not weight_map:
        _refuse(file, "it names no tensor")
    for name, shard in weight_map.items():
        if not isinstance(shard, str):
            _refuse(file, f"it gives {shown(name)} no file name")
    for shard in set(weight_map.values()):
        _check_shard(shard, file)
    return weight_map


def _weight_map(text: bytes, file: str) -> dict[str, Any]:
    if len(text) > MAX_INDEX:
        _refuse(file, f"it has more than {MAX_INDEX:,} bytes")
    try:
        data = json.loads(text.decode("utf-8"), object_pairs_hook=_without_twins)
    except (ValueError, RecursionError) as error:
        _refuse(file, str(error) if isinstance(error, _Twins) else "it is not JSON")
    weight_map = data.get("weight_map") if isinstance(data, dict) else None
    if not isinstance(weight_map, dict):
        _refuse(file, "it has no weight_map")
    return weight_map


class _Twins(ValueError):
    """A key stands twice in one object, so readers would differ about its value."""


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twin = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _Twins(f"it names {shown(twin)} twice")
    return result


def _check_shard(shard: str, file: str) -> None:
    """A path below the index's folder, in plain parts: no way up, no root, no drive, nothing that a shell expands."""
    parts = shard.split("/")
    if not shard.isprintable() or any(c in shard for c in '\\:*?"<>|'):
        _refuse(file, f"it names a file {shown(shard)}, which is no plain file name")
    if any(part in ("", ".", "..") for part in parts):
        _refuse(file, f"it names {shown(shard)}, which may lie outside its folder", slug="outside-folder")
    kind = ".bin" if file.endswith(PICKLED_SUFFIX) else ".safetensors"
    if not shard.endswith(kind):
        _refuse(file, f"it names {shown(shard)}, which is not a {kind.removeprefix('.')} file")


def _refuse(file: str, what: str, *, slug: str = "bad-index") -> NoReturn:
    raise HeaderError(
        f"{shown(file)} cannot be trusted: {what}.",
        cure="Download or copy the checkpoint again. If it is still so, tell its publisher.",
        slug=slug,
    ) from None
