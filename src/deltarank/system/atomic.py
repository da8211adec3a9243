"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import glob
import itertools
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_numbers = itertools.count()


@contextmanager
def write_atomically(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields the path of a new file beside `path`, which replaces `path` when the block ends without an error.

    If the block raises, the new file is removed and `path` stays as it was. Two writers never share a file: the last
    one to end wins.

    Raises:
        OSError: the new file cannot take its place.
    """
    target = Path(path)
    partial = target.with_name(f"{target.name}.{os.getpid()}-{next(_numbers)}.partial")
    try:
        yield partial
        partial.replace(target)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def unfinished_copies(path: Path) -> list[Path]:
    """What processes that were killed while they wrote `path` left beside it."""
    return sorted(path.parent.glob(f"{glob.escape(path.name)}.*-*.partial"))


def write_bytes_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes a whole file, or none. Raises OSError."""
    with write_atomically(path) as partial:
        partial.write_bytes(content)


def write_text_atomically(path: str | os.PathLike[str], text: str) -> None:
    """Writes a whole file in UTF-8, or none. Raises OSError."""
    write_bytes_atomically(path, text.encode())


def replace_folder(new: Path, target: Path) -> None:
    """Renames the folder `new` to `target`. What stood at `target` is removed, or put back if renaming fails.

    Raises:
        OSError: `new` cannot take that place.
    """
    aside = new.with_name(f"{new.name}.replaced")
    shutil.rmtree(aside, ignore_errors=True)
    if target.exists():
        target.rename(aside)
    try:
        new.rename(target)
    except OSError:
        with suppress(OSError):
            aside.rename(target)
        raise
    shutil.rmtree(aside, ignore_errors=True)
