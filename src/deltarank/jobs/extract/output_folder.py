"""The folder that an adapter is to be written to: what may be replaced, and what is finished already."""

from __future__ import annotations

import json
from pathlib import Path

from deltarank.adapters import CONFIG_FILE, METADATA_FILE
from deltarank.errors import OutputError
from deltarank.runtime import as_output_error


def is_made_from(output: Path, identity: str) -> bool:
    """Whether the folder has the adapter of the job with this identity."""
    try:
        metadata = json.loads((output / METADATA_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(metadata, dict) and metadata.get("identity") == identity


def folder_beside(output: Path, suffix: str) -> Path:
    """The folder of this suffix beside the output. Raises OutputError (slug "output-exists") for "." and ".."."""
    if output.name in ("", ".."):
        raise OutputError(
            f"{str(output)!r} is a folder that exists, and an adapter gets a folder of its own.",
            cure="Use -o with the name of a new folder.",
            slug="output-exists",
        )
    return output.with_name(output.name + suffix)


def check_output(output: Path, *, force: bool) -> None:
    """Raises OutputError (slug "output-exists") if the output holds something that may not be replaced.

    Slug "output-unwritable": it cannot be looked into, or its name is too long.
    """
    with as_output_error(output):
        if not output.exists() or (output.is_dir() and not any(output.iterdir())):
            return
        is_adapter = output.is_dir() and (output / CONFIG_FILE).is_file()
    if not (force and is_adapter):
        message = "already contains an adapter" if is_adapter else "already exists and is not an adapter"
        cure = (
            "Choose another folder with -o, or use --force to replace it."
            if is_adapter
            else "Choose another folder with -o."
        )
        raise OutputError(f"{output} {message}.", cure=cure, slug="output-exists")
