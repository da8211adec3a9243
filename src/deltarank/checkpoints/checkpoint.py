"""A checkpoint whose headers were read and checked, but no tensor data."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn, Self

from deltarank.checkpoints.empty_tensors import refuse_partitioned
from deltarank.checkpoints.escape import quoted
from deltarank.checkpoints.folder import WeightFiles, find_weights
from deltarank.checkpoints.formats.quantization_config import quantization_fingerprint
from deltarank.checkpoints.formats.registry import decode_tensors, read_tensors
from deltarank.checkpoints.formats.safetensors_header import TYPICAL_HEADER_BYTES, TensorInfo
from deltarank.checkpoints.hub.fetch import FetchedModel, check_fetch_mode, fetch_model
from deltarank.checkpoints.hub.http_ranges import Traffic
from deltarank.checkpoints.model_config import read_model_config
from deltarank.checkpoints.named_bases import read_named_bases
from deltarank.checkpoints.references import HubRef, LocalRef, parse_ref
from deltarank.checkpoints.source import Source
from deltarank.checkpoints.unread_shards import compare_unread
from deltarank.checkpoints.weight_names import ADAPTER_CONFIG
from deltarank.errors import CheckpointError, HeaderError
from deltarank.results import AddedAdapter, Reference, listing

PREFETCHED_HEADERS = 16
"""Files whose headers are prefetched: on the Hub, each is a round trip."""


@dataclass(frozen=True)
class Checkpoint:
    """What is known of a checkpoint before a tensor is read. Close it, or use it in a `with` statement.

    config           config.json beside the weights; empty if there is none, or none that can be read
    fingerprint      changes with any file's name, size, header or modification time (on the Hub: content)
    traffic          counts what is streamed; None if nothing is
    adapter          the configuration of an adapter that lies beside the weights of the folder; None if none does
    added            of the base with an adapter that is added when it is read: the adapter. None of stored weights
    run_as           of the base with an adapter: the reference of the base, whose configuration and tokenizer it has
    named_bases      Hub ids of the base models that the model card, or the configuration of the adapter, names
    """

    reference: Reference
    tensors: Mapping[str, TensorInfo] = field(repr=False)
    config: Mapping[str, Any] = field(repr=False)
    source: Source = field(repr=False)
    fingerprint: str
    notes: tuple[str, ...] = ()
    traffic: Traffic | None = field(default=None, repr=False, compare=False)
    adapter: Path | None = field(default=None, repr=False, compare=False)
    added: AddedAdapter | None = None
    run_as: Reference | None = None
    named_bases: tuple[str, ...] = ()

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
    """Opens a local checkpoint or one on the Hub, and checks its headers.

    Args:
        ref: a folder, a weights file, a shard index, or `org/name[@revision]` on the Hub.
        fetch: how a model is read that is not in the Hub's cache. "download": all of it into the cache first.
            "stream": by byte ranges when needed, without saving it. "auto": download if at least 5 GB of disk would
            remain free, else stream.
        on_note: called with sentences about the fetch: downloaded or streamed, and what it waits for.

    Raises:
        UsageError: the reference is invalid.
        CheckpointError: the checkpoint does not exist, cannot be read, or is an unsafe pickle.
        HeaderError: a header or a shard index is invalid.
    """
    parsed = parse_ref(ref, revision)
    mode = check_fetch_mode(fetch)
    try:
        if isinstance(parsed, HubRef):
            return _with_adapter(_open(fetched := fetch_model(parsed, mode, on_note), parsed.ref), fetched.weights)
        weights = find_weights(parsed.path)
        notes = (parsed.note,) if parsed.note else ()
        local = FetchedModel.local(replace(weights, notes=(*notes, *weights.notes)))
        opened = _open(local, _shown(parsed, weights))
        return _with_adapter(opened, weights) if parsed.path.is_dir() else opened
    except HeaderError as error:
        # Both checkpoints of a comparison have a `model.safetensors`: say whose it is.
        raise HeaderError(
            f"In {quoted(parsed.ref, max_length=300)}: {error.message}", cure=error.cure, slug=error.slug
        ) from None


def _with_adapter(checkpoint: Checkpoint, weights: WeightFiles) -> Checkpoint:
    """Of a folder: which of the two is meant is not clear, unless the user names a file."""
    config = weights.folder / ADAPTER_CONFIG
    if not config.is_file():
        return checkpoint
    where = quoted(checkpoint.reference.ref, max_length=300)
    note = f"an adapter ({quoted(ADAPTER_CONFIG)}) beside the weights of {where} is not read"
    return replace(checkpoint, adapter=config, notes=(*checkpoint.notes, note))


def _shown(parsed: LocalRef, weights: WeightFiles) -> str:
    """The reference, or the folder below it that is read instead."""
    is_below = parsed.path.is_dir() and weights.folder != parsed.path
    return str(weights.folder) if is_below else parsed.ref


def _open(fetched: FetchedModel, ref: str) -> Checkpoint:
    source, weights = fetched.source, fetched.weights
    try:
        config, config_note = read_model_config(weights.folder)
        headers, fingerprint, read_notes = _read_headers(source)
        stored = _merge_headers(headers, weights.owners)
        if not stored:
            _refuse_without_tensors(ref, source)
        refuse_partitioned(stored)
        notes = (*weights.notes, *read_notes, *compare_unread(weights, stored, source))
        notes += (config_note,) if config_note else ()
        tensors, decoded_source = decode_tensors(stored, source, config)
    except BaseException:
        source.close()
        raise
    if decoded_source is not source:
        fingerprint = f"{fingerprint} {quantization_fingerprint(config)}"
    reference = Reference(ref, fetched.commit, dict(source.files))
    return Checkpoint(
        reference=reference,
        tensors=tensors,
        config=config,
        source=decoded_source,
        fingerprint=fingerprint,
        notes=(*notes, *_missing_tensors(stored, weights.owners, reference)),
        traffic=fetched.traffic,
        named_bases=read_named_bases(weights.folder),
    )


def _read_headers(source: Source) -> tuple[list[TensorInfo], str, list[str]]:
    """The tensors of all files, a hash of their headers and fingerprints, and notes on which of them were read."""
    digest = hashlib.sha256()
    tensors: list[TensorInfo] = []
    notes: list[str] = []
    files = list(source.files)
    for index, file in enumerate(files):
        for upcoming in files[index + (PREFETCHED_HEADERS if index else 0) : index + PREFETCHED_HEADERS + 1]:
            source.prefetch(upcoming, 0, TYPICAL_HEADER_BYTES)
        header, infos, note = read_tensors(source, file)
        for part in (file.encode(), source.fingerprint(file).encode(), header):
            digest.update(len(part).to_bytes(8, "little") + part)
        tensors.extend(infos)
        notes += [note] if note else []
    return tensors, digest.hexdigest(), notes


def _merge_headers(headers: list[TensorInfo], owners: Mapping[str, str]) -> dict[str, TensorInfo]:
    """Tensors by name. If two files hold a tensor, the shard index decides."""
    tensors: dict[str, TensorInfo] = {}
    for info in headers:
        other = tensors.get(info.name)
        if other is None or owners.get(info.name) == info.file:
            tensors[info.name] = info
        elif owners.get(info.name) != other.file:
            raise HeaderError(
                f"{quoted(info.name)} is both in {quoted(other.file)} and in {quoted(info.file)}.",
                cure="Remove the file that does not belong to this checkpoint, or give one file instead of the folder.",
                slug="bad-index",
            )
    return tensors


def _refuse_without_tensors(ref: str, source: Source) -> NoReturn:
    files = listing([quoted(file) for file in source.files], most=3)
    raise CheckpointError(
        f"{quoted(ref, max_length=300)} contains no tensors ({files}), neither at the top nor under a key such as "
        "`state_dict`, `model` or `module`.",
        cure="Give the file that contains the weights; a trainer saves other state beside it.",
        slug="no-weights",
    )


def _missing_tensors(
    tensors: Mapping[str, TensorInfo], owners: Mapping[str, str], reference: Reference
) -> tuple[str, ...]:
    missing = [quoted(name) for name in owners if name not in tensors]
    if not missing:
        return ()
    names = f"the shard index of {quoted(reference.ref)} names {listing(missing, most=3)}"
    return (f"{names}, which no file contains: the checkpoint may be incomplete",)
