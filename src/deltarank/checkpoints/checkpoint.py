"""A checkpoint whose headers were read and checked, and none of its numbers."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from deltarank.checkpoints.escape import shown
from deltarank.checkpoints.folder import find_weights
from deltarank.checkpoints.formats.header_of_file import read_tensors
from deltarank.checkpoints.formats.registry import decoded, fingerprint_of
from deltarank.checkpoints.formats.safetensors_header import LIKELY_HEADER, TensorInfo
from deltarank.checkpoints.hub.fetch import Fetched, check_fetch_mode
from deltarank.checkpoints.hub.fetch import fetch as fetch_model
from deltarank.checkpoints.hub.http_ranges import Traffic
from deltarank.checkpoints.references import HubRef, parse_ref
from deltarank.checkpoints.source import LocalSource, Source
from deltarank.errors import HeaderError
from deltarank.results import Reference, listing

MAX_CONFIG = 4_000_000

HEADERS_AHEAD = 16
"""Files whose headers are announced before they are read: on the Hub each is a round trip."""


@dataclass(frozen=True)
class Checkpoint:
    """What is known of a checkpoint before a tensor is read. Close it, or use it in a `with`.

    config           config.json beside the weights; empty where there is none
    fingerprint      changes with any file's name, size, header or time of change (on the Hub: content)
    traffic          counts what is streamed; None where nothing is
    """

    reference: Reference
    tensors: Mapping[str, TensorInfo] = field(repr=False)
    config: Mapping[str, Any] = field(repr=False)
    source: Source = field(repr=False)
    fingerprint: str
    notes: tuple[str, ...] = ()
    traffic: Traffic | None = field(default=None, repr=False, compare=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.source.close()


def open_checkpoint(
    ref: str | os.PathLike[str],
    *,
    revision: str | None = None,
    fetch: str = "auto",
    on_note: Callable[[str], None] = lambda sentence: None,
) -> Checkpoint:
    """Finds a checkpoint, on this machine or on the Hub, and checks its headers.

    Args:
        ref: a folder, a file of weights, a shard index, or `org/name[@revision]` on the Hub.
        fetch: what becomes of a model that is not in the Hub's cache. "download": into the cache, whole. "stream": read
            by byte ranges when it is needed, and not kept. "auto": download where the disk then keeps 5 GB free.
        on_note: called with sentences about the fetch: downloaded or streamed, and what it waits for.

    Raises:
        UsageError: the reference cannot be meant.
        CheckpointError: there is no such checkpoint, or it cannot be read, or it is pickled.
        HeaderError: a header or an index is not to be trusted.
    """
    found = parse_ref(ref, revision)
    way = check_fetch_mode(fetch)
    try:
        if isinstance(found, HubRef):
            return _open(fetch_model(found, way, on_note), found.ref)
        weights = find_weights(found.path)
        return _open(Fetched(weights, None, LocalSource(weights.folder, weights.files)), found.ref)
    except HeaderError as error:
        # Both checkpoints of a comparison have a `model.safetensors`: say whose it is.
        raise HeaderError(
            f"In {shown(found.ref, most=300)}: {error.message}", cure=error.cure, slug=error.slug
        ) from None


def _open(fetched: Fetched, ref: str) -> Checkpoint:
    source, weights = fetched.source, fetched.weights
    config = _read_config(weights.folder / "config.json")
    try:
        headers, fingerprint = _read_headers(source)
        stored = _together(headers, weights.owners)
        tensors, view = decoded(stored, source, config)
    except BaseException:
        source.close()
        raise
    reference = Reference(ref, fetched.commit, dict(source.files))
    return Checkpoint(
        reference=reference,
        tensors=tensors,
        config=config,
        source=view,
        fingerprint=fingerprint if view is source else f"{fingerprint} {fingerprint_of(config)}",
        notes=_missing(stored, weights.owners, reference),
        traffic=fetched.traffic,
    )


def _read_headers(source: Source) -> tuple[list[TensorInfo], str]:
    """All tensors of all files, and a hash over what would change if one of the files did."""
    digest = hashlib.sha256()
    tensors: list[TensorInfo] = []
    files = list(source.files)
    for number, file in enumerate(files):
        for near in files[number + (HEADERS_AHEAD if number else 0) : number + HEADERS_AHEAD + 1]:
            source.prefetch(near, 0, LIKELY_HEADER)
        header, found = read_tensors(source, file)
        for part in (file.encode(), source.fingerprint(file).encode(), header):
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
