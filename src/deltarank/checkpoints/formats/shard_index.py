"""A shard index (`model.safetensors.index.json`): which file holds which tensor. Parsed as untrusted input."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, NoReturn

from deltarank.checkpoints.escape import quoted
from deltarank.checkpoints.file_contents import refuse_pointer
from deltarank.checkpoints.file_errors import refuse_file

INDEX_SUFFIX = ".safetensors.index.json"
BIN_INDEX_SUFFIX = ".bin.index.json"
MAX_INDEX = 32_000_000
"""Bytes. 50,000 tensors with long names take about 6 MB."""


def parse_index(text: bytes, *, file: str) -> dict[str, str]:
    """Tensor name to file name; each file is inside the folder of the index.

    Raises:
        HeaderError: not the JSON of a shard index, or it names a file outside its folder.
    """
    weight_map = _weight_map(text, file)
    if not weight_map:
        _refuse(file, "it names no tensor")
    for name, shard in weight_map.items():
        if not isinstance(shard, str):
            _refuse(file, f"it gives no file name for {quoted(name)}")
    for shard in set(weight_map.values()):
        _check_shard(shard, file)
    return weight_map


def _weight_map(text: bytes, file: str) -> dict[str, Any]:
    if len(text) > MAX_INDEX:
        _refuse(file, f"it has more than {MAX_INDEX:,} bytes")
    refuse_pointer(text, file)
    try:
        data = json.loads(text.decode("utf-8"), object_pairs_hook=_refuse_duplicates)
    except (ValueError, RecursionError) as error:
        _refuse(file, str(error) if isinstance(error, _DuplicateKeyError) else "it is not JSON")
    weight_map = data.get("weight_map") if isinstance(data, dict) else None
    if not isinstance(weight_map, dict):
        _refuse(file, "it has no weight_map")
    return weight_map


class _DuplicateKeyError(ValueError):
    """A key appears twice in one object, so readers would disagree about its value."""


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        [(key, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise _DuplicateKeyError(f"it names {quoted(key)} twice")
    return result


def _check_shard(shard: str, file: str) -> None:
    """A plain path below the index's folder: no parent, root or drive, and nothing that a shell expands."""
    parts = shard.split("/")
    if not shard.isprintable() or any(c in shard for c in '\\:*?"<>|'):
        _refuse(file, f"it names {quoted(shard)}, which is not a plain file name")
    if any(part in ("", ".", "..") for part in parts):
        _refuse(file, f"it names {quoted(shard)}, which may lie outside its folder", slug="outside-folder")
    suffix = ".bin" if file.endswith(BIN_INDEX_SUFFIX) else ".safetensors"
    if not shard.endswith(suffix):
        _refuse(file, f"it names {quoted(shard)}, which is not a {suffix} file")


def _refuse(file: str, problem: str, *, slug: str = "bad-index") -> NoReturn:
    cure = "Download or copy the checkpoint again. If the error remains, tell its publisher."
    refuse_file(file, problem, slug=slug, cure=cure)
