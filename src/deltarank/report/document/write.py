"""Writes the files of a report: each completely or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from deltarank.errors import OutputError
from deltarank.system import user_path, write_bytes_atomically


def write_files(contents: Mapping[str, bytes], folder: Path) -> tuple[Path, ...]:
    """Writes them over those of an earlier report.

    Args:
        contents: by file name.

    Raises:
        OutputError: (slug "output-unwritable") the folder cannot be written, or the disk is full.
    """
    target = user_path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            write_bytes_atomically(target / name, content)
    except OSError as error:
        raise OutputError(
            f"Cannot write the report to {target}: {error.strerror or error}.",
            cure="Choose a folder that you may write to, on a disk with some free megabytes.",
            slug="output-unwritable",
        ) from error
    return tuple(target / name for name in contents)
