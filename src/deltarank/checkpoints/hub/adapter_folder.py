"""Where an adapter lies that was given in a checkpoint's place: a folder, or a repository on the Hub."""

from __future__ import annotations

import os
from pathlib import Path

from deltarank.checkpoints.hub.client import download_named
from deltarank.checkpoints.references import HubRef, parse_ref

CONFIG = "adapter_config.json"
_FILES = (CONFIG, "adapter_model.safetensors", "adapter_model.bin")


def find_adapter_folder(ref: str | os.PathLike[str], revision: str | None) -> tuple[Path, str, str | None] | None:
    """The adapter's folder, what it is called, and its commit on the Hub; None if there is none.

    Raises:
        UsageError: the reference cannot be meant.
        CheckpointError: it does not exist, or the Hub cannot be reached.
    """
    found = parse_ref(ref, revision)
    if isinstance(found, HubRef):
        folder, _ = download_named(found, _FILES)
        return (folder, found.ref, folder.name) if (folder / CONFIG).is_file() else None
    return (found.path, found.ref, None) if (found.path / CONFIG).is_file() else None
