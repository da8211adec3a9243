"""Files checked against the hashes that the Hub states: SHA-256 of large ones, git's SHA-1 of small ones."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from deltarank.checkpoints.escape import quoted
from deltarank.errors import CheckpointError

_SHA256_LENGTH = 64


def has_digest(content: bytes | bytearray, digest: str) -> bool:
    """Whether these are the bytes of the file that the Hub lists with this hash."""
    if len(digest) == _SHA256_LENGTH:
        return hashlib.sha256(content).hexdigest() == digest
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest() == digest


def check_downloads(paths: Iterable[Path]) -> None:
    """Checks files in the Hub's cache against their hashes, and deletes those that do not match.

    The cache names the blob of a large file by its SHA-256. Where it has no blobs (systems without symbolic links),
    nothing is checked.

    Raises:
        CheckpointError: (slug "damaged") a file does not have the hash that the Hub lists.
    """
    blobs = {path: blob for path in paths if len((blob := path.resolve()).name) == _SHA256_LENGTH}
    with ThreadPoolExecutor(4) as pool:  # hashing releases the GIL
        digests = dict(zip(blobs, pool.map(_sha256, blobs.values()), strict=True))
    wrong = [path for path, blob in blobs.items() if digests[path] != blob.name]
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
        f"{quoted(file, max_length=300)} was corrupted during download: its hash does not match the Hub's.",
        cure="Run the command again. If it fails again, a proxy or mirror probably alters files: try another network, "
        "or another HF_ENDPOINT.",
        slug="damaged",
    )
