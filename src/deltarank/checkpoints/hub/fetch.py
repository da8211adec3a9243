"""A model on the Hub as a source: from the cache, downloaded into it, or streamed. Free disk decides unless told."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deltarank.checkpoints.escape import shown
from deltarank.checkpoints.folder import Weights, find_weights
from deltarank.checkpoints.hub.client import download, download_named, snapshot_without_weights, translated
from deltarank.checkpoints.hub.http_ranges import HttpFile, Ranged, RemoteFile, Traffic
from deltarank.checkpoints.hub.listing import list_weights
from deltarank.checkpoints.hub.source import HubSource, PooledSource
from deltarank.checkpoints.hub.xet import XetFile, XetLine
from deltarank.checkpoints.hub.xet import is_available as xet_is_available
from deltarank.checkpoints.references import HubRef, parse_ref
from deltarank.checkpoints.source import LocalSource, Source
from deltarank.errors import CheckpointError, UsageError
from deltarank.results import size

Fetch = Literal["auto", "download", "stream"]
WAYS: tuple[Fetch, ...] = ("auto", "download", "stream")

SPARE = 5_000_000_000
"""Bytes that a download leaves free on its disk, or it is streamed."""

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Fetched:
    """A model whose weights can be read. `weights.folder` holds config.json, whether the weights lie there or not."""

    weights: Weights
    commit: str | None
    source: Source
    traffic: Traffic | None = None


def fetch(ref: HubRef, how: Fetch, tell: Tell) -> Fetched:
    """Finds a model and makes it readable.

    download: everything into the cache first. stream: what is not in the cache is read by byte ranges, and nothing is
    kept. auto: download if the disk then keeps 5 GB free, else stream; `tell` is told which.

    Raises:
        CheckpointError, HeaderError: as `open_checkpoint`.
    """
    from huggingface_hub import constants

    if how == "download" or constants.HF_HUB_OFFLINE:
        return _downloaded(ref)
    folder, commit = snapshot_without_weights(ref)
    found = list_weights(ref, commit, folder)
    if found is None:
        return _refuse_to_stream(ref) if how == "stream" else _downloaded(ref)
    weights, files = found
    missing = [file for file in files if not (folder / file.name).is_file()]
    if missing and _is_streamed(ref, how, sum(file.size for file in missing), tell):
        return _streamed(ref, commit, weights, missing, tell)
    if missing:
        return _downloaded(HubRef(ref.repo_id, commit))
    return Fetched(weights, commit, LocalSource(folder, weights.files))


def fetch_files(ref: str | os.PathLike[str], names: Sequence[str], *, revision: str | None) -> tuple[Path, str | None]:
    """A folder that holds those of these files which there are: one on this machine, or one in the Hub's cache.

    Returns it with the commit that it is, which only what comes from the Hub has.

    Raises:
        UsageError, CheckpointError: as `open_checkpoint`.
    """
    found = parse_ref(ref, revision)
    return download_named(found, names) if isinstance(found, HubRef) else (found.path, None)


def _downloaded(ref: HubRef) -> Fetched:
    folder, commit = download(ref)
    weights = find_weights(folder)
    return Fetched(weights, commit, LocalSource(weights.folder, weights.files))


def _is_streamed(ref: HubRef, how: Fetch, needed: int, tell: Tell) -> bool:
    """Decides, and says so before hours of it begin."""
    from huggingface_hub import constants

    free = _free(Path(constants.HF_HUB_CACHE))
    streamed = how == "stream" or needed + SPARE > free
    way = "streamed, and nothing of it is kept" if streamed else "downloaded into the Hub's cache"
    why = "" if how == "stream" else f" ({size(free)} are free there)" if not streamed else f" ({size(free)} are free)"
    tell(f"{shown(ref.ref)}: {size(needed)} are {way}{why}.")
    return streamed


def _free(folder: Path) -> int:
    """Bytes free where the cache lies or will lie."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _streamed(ref: HubRef, commit: str, weights: Weights, missing: Sequence[RemoteFile], tell: Tell) -> Fetched:
    traffic = Traffic(frozenset(file.name for file in missing))
    ways = _Ways(ref, commit, traffic, tell)
    source: Source = HubSource(
        missing, ways.to, traffic=traffic, stop=ways.stop, translate=lambda error: translated(ref, error)
    )
    cached = [name for name in weights.files if name not in source.files]
    if cached:
        source = PooledSource([source, LocalSource(weights.folder, cached)])
    return Fetched(weights, commit, source, traffic)


class _Ways:
    """How each file of a model is read: over Xet where it lies there, else over HTTP."""

    def __init__(self, ref: HubRef, commit: str, traffic: Traffic, tell: Tell) -> None:
        from huggingface_hub import constants
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        self._ref, self._commit, self._traffic, self._tell = ref, commit, traffic, tell
        self._headers: dict[str, str] = build_hf_headers(library_name="deltarank")
        self._stopped = threading.Event()
        self._line: XetLine | None = None
        if xet_is_available():
            url = f"{constants.ENDPOINT}/api/models/{ref.repo_id}/xet-read-token/{commit}"
            self._line = XetLine(url, self._headers, traffic, tell)

    def to(self, file: RemoteFile) -> Ranged:
        http = self._over_http(file)
        return XetFile(file, self._line, http) if self._line and file.xet_hash else http

    def stop(self) -> None:
        self._stopped.set()
        if self._line is not None:
            self._line.close()

    def _over_http(self, file: RemoteFile) -> HttpFile:
        from huggingface_hub import hf_hub_url

        url = hf_hub_url(self._ref.repo_id, file.name, revision=self._commit)
        return HttpFile(file, url, self._headers, traffic=self._traffic, tell=self._tell, stopped=self._stopped)


def _refuse_to_stream(ref: HubRef) -> Fetched:
    raise CheckpointError(
        f"{shown(ref.repo_id)} has no safetensors weights at this revision that could be read by parts.",
        cure="Give --download: what else it holds is looked at then.",
        slug="cannot-stream",
    )


def check_fetch_mode(how: str) -> Fetch:
    """Raises:
    UsageError: (slug "bad-fetch") no such way.
    """
    for way in WAYS:
        if how == way:
            return way
    raise UsageError(
        f"{shown(how)} is no way to fetch a model.", cure=f"Give one of {', '.join(WAYS)}.", slug="bad-fetch"
    )
