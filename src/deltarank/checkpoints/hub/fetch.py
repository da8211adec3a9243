"""A model on the Hub as a source: read from the cache, downloaded into it, or streamed."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from deltarank.checkpoints.escape import quoted
from deltarank.checkpoints.folder import WeightFiles, find_weights
from deltarank.checkpoints.hub.client import download, download_files, download_metadata, translate_hub_error
from deltarank.checkpoints.hub.http_ranges import HttpRangeReader, RangeReader, RemoteFile, Traffic
from deltarank.checkpoints.hub.listing import list_weights, refuse_by_listing
from deltarank.checkpoints.hub.source import CombinedSource, HubSource
from deltarank.checkpoints.hub.xet import XetConnection, XetRangeReader
from deltarank.checkpoints.hub.xet import is_available as xet_is_available
from deltarank.checkpoints.references import HubRef, parse_ref
from deltarank.checkpoints.source import LocalSource, Source
from deltarank.checkpoints.subfolders import adapter_folder
from deltarank.checkpoints.weight_names import ADAPTER_CONFIG, is_adapter
from deltarank.errors import CheckpointError, DeltarankError, UsageError
from deltarank.results import size
from deltarank.system import user_path

FetchMode = Literal["auto", "download", "stream"]
FETCH_MODES: tuple[FetchMode, ...] = ("auto", "download", "stream")

MIN_FREE_BYTES = 5_000_000_000
"""Disk space that must remain free after a download; else "auto" streams."""

_ADAPTER_FILES = (ADAPTER_CONFIG, "adapter_model.safetensors", "adapter_model.bin", "adapters.safetensors")


@dataclass(frozen=True)
class FetchedModel:
    """A model whose weights can be read. `weights.folder` holds config.json even if the weights are streamed."""

    weights: WeightFiles
    commit: str | None
    source: Source
    traffic: Traffic | None = None

    @classmethod
    def local(cls, weights: WeightFiles, commit: str | None = None) -> FetchedModel:
        return cls(weights, commit, LocalSource(weights.folder, weights.names))


def fetch_model(ref: HubRef, mode: FetchMode, on_note: Callable[[str], None]) -> FetchedModel:
    """Makes a model readable.

    "download" puts all of it into the cache. "stream" reads what is not in the cache by byte ranges, and saves nothing.
    "auto" downloads if at least 5 GB of disk would remain free, else streams, and says which in a note.

    Raises:
        CheckpointError, HeaderError: as `open_checkpoint`.
    """
    from huggingface_hub import constants

    if mode == "download" or constants.HF_HUB_OFFLINE:
        return _downloaded(ref)
    folder, commit = download_metadata(ref)
    listed = list_weights(ref, commit, folder)
    if listed is None:
        if mode == "stream":
            raise _cannot_stream(ref)
        return _downloaded(ref)
    weights, files = listed
    missing = [file for file in files if not (folder / file.name).is_file()]
    if not missing:
        return FetchedModel.local(weights, commit)
    if is_streamed(ref, mode, sum(file.size for file in missing), on_note):
        return _streamed(ref, commit, weights, missing, on_note)
    return _downloaded(HubRef(ref.repo_id, commit))


def fetch_files(ref: str | os.PathLike[str], names: Sequence[str], *, revision: str | None) -> tuple[Path, str | None]:
    """A folder that holds those of these files of an adapter that exist, and its commit on the Hub.

    A local folder may also be named by one of the files in it, or by a folder above it, if that is clear.

    Raises:
        UsageError, CheckpointError: as `open_checkpoint`; (slug "several-folders") several folders below this one
            hold an adapter.
    """
    parsed = parse_ref(ref, revision)
    if isinstance(parsed, HubRef):
        return download_files(parsed, names)
    return adapter_folder(parsed.path), None


def is_adapter_file(ref: str | os.PathLike[str]) -> bool:
    """Whether this is the path of a file of an adapter, with its configuration beside it."""
    path = user_path(ref)
    return is_adapter(path.name) and path.is_file() and (path.parent / ADAPTER_CONFIG).is_file()


def find_adapter_folder(ref: str | os.PathLike[str], revision: str | None) -> tuple[Path, str, str | None] | None:
    """The folder of a LoRA adapter, its reference, and its commit on the Hub; None if there is no adapter.

    Raises:
        UsageError, CheckpointError: as `open_checkpoint`.
    """
    folder, commit = fetch_files(ref, _ADAPTER_FILES, revision=revision)
    if not (folder / ADAPTER_CONFIG).is_file():
        return None
    parsed = parse_ref(ref, revision)
    is_given = isinstance(parsed, HubRef) or parsed.path == folder
    return folder, parsed.ref if is_given else str(folder), commit


def check_fetch_mode(mode: str) -> FetchMode:
    """Raises:
    UsageError: (slug "bad-fetch") there is no such mode.
    """
    for valid in FETCH_MODES:
        if mode == valid:
            return valid
    raise UsageError(
        f"{quoted(mode)} is not a fetch mode.", cure=f"Give one of {', '.join(FETCH_MODES)}.", slug="bad-fetch"
    )


def is_streamed(ref: HubRef, mode: FetchMode, nbytes: int, on_note: Callable[[str], None]) -> bool:
    """Decides between streaming and downloading, and says so before hours of it begin."""
    from huggingface_hub import constants

    free = _free_bytes(Path(constants.HF_HUB_CACHE))
    streamed = mode == "stream" or nbytes + MIN_FREE_BYTES > free
    model = f"{size(nbytes)} of {quoted(ref.ref)}"
    action = f"Streaming {model} without saving it" if streamed else f"Downloading {model} into the Hub's cache"
    on_note(f"{action}{'' if mode == 'stream' else f' ({size(free)} of disk space free)'}.")
    return streamed


def _free_bytes(folder: Path) -> int:
    """Free space on the disk where the cache is or will be."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _downloaded(ref: HubRef) -> FetchedModel:
    try:
        folder, commit = download(ref)
    except CheckpointError as error:
        if error.slug == "no-weights":
            refuse_by_listing(ref)
        raise
    return FetchedModel.local(find_weights(folder), commit)


def _streamed(
    ref: HubRef, commit: str, weights: WeightFiles, missing: Sequence[RemoteFile], on_note: Callable[[str], None]
) -> FetchedModel:
    traffic = Traffic(frozenset(file.name for file in missing))
    source: Source = HubSource(missing, _Connection(ref, commit, traffic, on_note))
    cached = [name for name in weights.names if name not in source.files]
    if cached:
        source = CombinedSource([source, LocalSource(weights.folder, cached)])
    return FetchedModel(weights, commit, source, traffic)


class _Connection:
    """Opens the files of one commit: over Xet if they are stored there, else over HTTP."""

    def __init__(self, ref: HubRef, commit: str, traffic: Traffic, on_note: Callable[[str], None]) -> None:
        from huggingface_hub import constants
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        self._ref, self._commit, self.traffic, self._on_note = ref, commit, traffic, on_note
        self._headers: dict[str, str] = build_hf_headers(library_name="deltarank")
        self._stopped = threading.Event()
        self._xet: XetConnection | None = None
        if xet_is_available():
            url = f"{constants.ENDPOINT}/api/models/{ref.repo_id}/xet-read-token/{commit}"
            self._xet = XetConnection(url, self._headers, traffic, on_note)

    def __reduce__(self) -> tuple[Any, ...]:
        """The token is no part of it: another machine uses its own."""
        return _connect, (self._ref, self._commit, self.traffic.files)

    def open(self, file: RemoteFile) -> RangeReader:
        from huggingface_hub import hf_hub_url

        url = hf_hub_url(self._ref.repo_id, file.name, revision=self._commit)
        http = HttpRangeReader(
            file, url, self._headers, traffic=self.traffic, on_note=self._on_note, stopped=self._stopped
        )
        return XetRangeReader(file, self._xet, http) if self._xet and file.xet_hash else http

    def stop(self) -> None:
        self._stopped.set()
        if self._xet is not None:
            self._xet.close()

    def translate(self, error: Exception) -> DeltarankError:
        return translate_hub_error(self._ref, error)


def _connect(ref: HubRef, commit: str, files: frozenset[str]) -> _Connection:
    """In a process without a user: nobody reads its notes."""
    return _Connection(ref, commit, Traffic(files), lambda sentence: None)


def _cannot_stream(ref: HubRef) -> CheckpointError:
    return CheckpointError(
        f"{quoted(ref.repo_id)} cannot be streamed: it has no safetensors weights at this revision.",
        cure="Use --download, which also accepts other formats.",
        slug="cannot-stream",
    )
