"""One file of weights beside the shard index of the same folder: do the two hold the same weights?

transformers reads `model.safetensors` and ignores the index. If a trainer left one of the two there, they differ, and
only the user knows which is meant.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn

from deltarank.checkpoints.escape import quoted
from deltarank.checkpoints.folder import WeightFiles
from deltarank.checkpoints.formats.registry import read_tensors
from deltarank.checkpoints.formats.safetensors_header import TensorInfo
from deltarank.checkpoints.source import LocalSource, Source
from deltarank.errors import CheckpointError

_COMPARED_BYTES = 4096
"""Bytes from the middle of each tensor."""


def compare_unread(weights: WeightFiles, tensors: Mapping[str, TensorInfo], source: Source) -> tuple[str, ...]:
    """A note of the shards that are not read, if there is an index beside the file.

    Names are compared; if all shards are here, so are shapes, dtypes and a few numbers of each tensor.

    Raises:
        CheckpointError: (slug "several-checkpoints") they differ.
    """
    if not weights.unread:
        return ()
    [read] = weights.names
    differing = sorted(weights.unread.keys() ^ tensors.keys())
    if differing:
        _refuse(weights, f"{quoted(differing[0])} is in only one of them")
    shards = sorted(set(weights.unread.values()))
    if not all((weights.folder / shard).is_file() for shard in shards):
        return (f"{quoted(read)} is read; the shards that the index beside it names are not",)
    _compare_shards(weights, shards, tensors, source)
    return (f"{quoted(read)} is read, not the {len(shards)} shards beside it, which agree with it where compared",)


def _compare_shards(weights: WeightFiles, shards: list[str], tensors: Mapping[str, TensorInfo], source: Source) -> None:
    other = LocalSource(weights.folder, shards)
    try:
        for shard in shards:
            for info in read_tensors(other, shard).tensors:
                if weights.unread.get(info.name) == shard and not _agree(tensors[info.name], source, info, other):
                    _refuse(weights, f"{quoted(info.name)} differs")
    finally:
        other.close()


def _agree(one: TensorInfo, source: Source, other: TensorInfo, other_source: Source) -> bool:
    if (one.shape, one.dtype, one.nbytes) != (other.shape, other.dtype, other.nbytes):
        return False
    length = min(one.nbytes, _COMPARED_BYTES)
    skip = (one.nbytes - length) // 2
    ours, theirs = bytearray(length), bytearray(length)
    source.read_into(one.file, one.start + skip, memoryview(ours))
    other_source.read_into(other.file, other.start + skip, memoryview(theirs))
    return ours == theirs


def _refuse(weights: WeightFiles, difference: str) -> NoReturn:
    [read] = weights.names
    path = quoted(weights.folder / read, max_length=300)
    raise CheckpointError(
        f"{quoted(weights.folder, max_length=300)} contains {quoted(read)} and a shard index that does not agree with "
        f"it: {difference}.",
        cure=f"Remove what is left of another checkpoint. Or give the path of what is meant: {path}, or the index "
        "(`.index.json`). If the model is on the Hub, `hf download` it first.",
        slug="several-checkpoints",
    )
