"""Where an adapter lies that was given in a checkpoint's place: a folder, or a repository on the Hub."""

from __future__ import annotations

import os
from pathlib import Path

from deltarank.checkpoints._hub import at_the_edge
from deltarank.checkpoints._refs import HubRef, parse_ref

CONFIG = "adapter_config.json"
_FILES = (CONFIG, "adapter_model.safetensors", "adapter_model.bin")


def adapter_folder(ref: str | os.PathLike[str], revision: str | None) -> tuple[Path, str, str | None] | None:
    """The adapter's folder, what it is called, and its commit on the Hub; None if there is none.

    Raises:
        UsageError: the reference cannot be meant.
        CheckpointError: it does not exist, or the Hub cannot be reached.
    """
    found = parse_ref(ref, revision)
    if isinstance(found, HubRef):
        folder = _fetched(found)
        return (folder, found.ref, folder.name) if (folder / CONFIG).is_file() else None
    return (found.path, found.ref, None) if (found.path / CONFIG).is_file() else None


def _fetched(ref: HubRef) -> Path:
    """Into the Hub's usual cache: an adapter is small."""
    from huggingface_hub import snapshot_download

    def fetch() -> str:
        return str(
            snapshot_download(ref.repo_id, revision=ref.revision, allow_patterns=list(_FILES), library_name="deltarank")
        )

    return Path(at_the_edge(ref, fetch))
