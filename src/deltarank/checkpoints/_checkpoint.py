"""A checkpoint whose headers were read and checked, and none of its numbers."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from deltarank.checkpoints._files import read_tensors
from deltarank.checkpoints._folder import Weights, find_weights
from deltarank.checkpoints._formats import decoded, fingerprint_of
from deltarank.checkpoints._headers import TensorInfo
from deltarank.checkpoints._hub import fetch
from deltarank.checkpoints._refs import HubRef, parse_ref
from deltarank.checkpoints._source import LocalSource, Source
from deltarank.checkpoints._text import shown
from deltarank.errors import HeaderError
from deltarank.results import Reference
from deltarank.words import listing

MAX_CONFIG = 4_000_000


@dataclass(frozen=True)
class Checkpoint:
    """What is known of a checkpoint before a tensor is read. Close it, or use it in a `with`.

    config           config.json beside the weights; empty where there is none
    fingerprint      changes with any file's name, size, header or time of change (on the Hub: content)
    """

    reference: Reference
    tensors: Mapping[str, TensorInfo] = field(repr=False)
    config: Mapping[str, Any] = field(repr=False)
    source: Source = field(repr=False)
    fingerprint: str
    notes: tuple[str, ...] = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.source.close()


def open_checkpoint(ref: str | os.PathLike[str], *, revision: str | None = None) -> Checkpoint:
    """Finds a checkpoint, fetches it from the Hub's cache if it is a Hub id, and checks its headers.

    `ref`: a folder, a file of weights, a shard index, or `org/name[@revision]` on the Hub.

    Raises:
        UsageError: the reference cannot be meant.
        CheckpointError: there is no such checkpoint, or it cannot be read, or it is pickled.
        HeaderError: a header or an index is not to be trusted.
    """
    found = parse_ref(ref, revision)
    try:
        path, commit = fetch(found) if isinstance(found, HubRef) else (found.path, None)
        return _open(find_weights(path), Reference(found.ref, commit))
    except HeaderError as error:
        # Both checkpoints of a comparison have a `model.safetensors`: say whose it is.
        raise HeaderError(
            f"In {shown(found.ref, most=300)}: {error.message}", cure=error.cure, slug=error.slug
        ) from None


def _open(weights: Weights, reference: Reference) -> Checkpoint:
    source = LocalSource(weights.folder, weights.files)
    config = _read_config(weights.folder / "config.json")
    try:
        headers, fingerprint = _read_headers(source)
        stored = _together(headers, weights.owners)
        tensors, view = decoded(stored, source, config)
    except BaseException:
        source.close()
        raise
    return Checkpoint(
        reference=Reference(reference.ref, reference.revision, dict(source.files)),
        tensors=tensors,
        config=config,
        source=view,
        fingerprint=fingerprint if view is source else f"{fingerprint} {fingerprint_of(config)}",
        notes=_missing(stored, weights.owners, reference),
    )


def _read_headers(source: Source) -> tuple[list[TensorInfo], str]:
    """All tensors of all files, and a hash over what would change if one of the files did."""
    digest = hashlib.sha256()
    tensors: list[TensorInfo] = []
    for file in source.files:
        header, found = read_tensors(source, file)
        for part in (file.encode(), source.stamp(file).encode(), header):
            digest.update(len(part).to_bytes(8, "little") + part)
        tensors.extend(found)
    return tensors, digest.hexdigest()


def _together(headers: list[TensorInfo], owners: Mapping[str, str]) -> dict[str, TensorInfo]:
    """By name. Where two files hold a tensor, the index says which one counts."""
    tensors: dict[str, TensorInfo] = {}
    for info in headers:
        other = tensors.get(info.name)
        if other is None or owners.get(info.name) == info.file:
            tensors[info.name] = info
        elif owners.get(info.name) != other.file:
            raise HeaderError(
                f"{shown(info.name)} is both in {shown(other.file)} and in {shown(info.file)}.",
                cure="Remove the file that does not belong to this checkpoint, or give the one file that is meant.",
                slug="bad-index",
            )
    return tensors


def _missing(tensors: Mapping[str, TensorInfo], owners: Mapping[str, str], reference: Reference) -> tuple[str, ...]:
    missing = [name for name in owners if name not in tensors]
    if not missing:
        return ()
    names = listing([shown(name) for name in missing], most=3)
    return (f"the index of {shown(reference.ref)} names {names}, and no file of it holds that: a part may be missing",)


def _read_config(path: Path) -> dict[str, Any]:
    """A configuration only adds words and hints, so a missing or broken one is an empty one."""
    try:
        if not path.is_file() or path.stat().st_size > MAX_CONFIG:
            return {}
        config = json.loads(path.read_bytes().decode("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}
