"""Files held against the hashes that the Hub states: SHA-256 for large ones, git's SHA-1 for small ones."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from deltarank.checkpoints.escape import shown
from deltarank.errors import CheckpointError

_SHA256 = 64


def matches(content: bytes | bytearray, digest: str) -> bool:
    """Whether a file that came whole is the one that was listed."""
    if len(digest) == _SHA256:
        return hashlib.sha256(content).hexdigest() == digest
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest() == digest


def check_downloads(paths: Iterable[Path]) -> None:
    """Holds files that have just come into the Hub's cache against their names there; takes a wrong one out again.

    The cache names a large file's blob by its SHA-256; where it has no blobs (systems without links), nothing is done.

    Raises:
        CheckpointError: (slug "damaged") one is not what the Hub lists.
    """
    blobs = {path: blob for path in paths if len((blob := path.resolve()).name) == _SHA256}
    with ThreadPoolExecutor(4) as pool:  # hashing lets other threads work
        found = dict(zip(blobs, pool.map(_sha256, blobs.values()), strict=True))
    wrong = [path for path, blob in blobs.items() if found[path] != blob.name]
    for path in wrong:
        path.unlink(missing_ok=True)
        blobs[path].unlink(missing_ok=True)
    if wrong:
        raise damaged(wrong[0].name)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damaged(file: str) -> CheckpointError:
    return CheckpointError(
        f"{shown(file, most=300)} arrived damaged: its bytes do not have the hash that the Hub states.",
        cure="Run it again. If it stays so, something on the way (a proxy, a mirror) changes files: try another "
        "network, or another HF_ENDPOINT.",
        slug="damaged",
    )
