"""config.json beside the weights: what transformers would load them with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deltarank.checkpoints.escape import quoted
from deltarank.checkpoints.file_contents import refuse_pointer

MODEL_CONFIG = "config.json"

MAX_CONFIG_BYTES = 4_000_000

UNKNOWN_WITHOUT = (
    "the model type, the numbers of heads and whether the output head is tied to the embedding are unknown; only the "
    "names, shapes and numbers of the tensors are used"
)


def read_model_config(folder: Path) -> tuple[dict[str, Any], str | None]:
    """The configuration, and a note if there is a file that contains none; empty, without a note, if there is no file.

    Raises:
        HeaderError: (slug "lfs-pointer") the file is a Git LFS pointer.
    """
    path = folder / MODEL_CONFIG
    if not path.is_file():
        return {}, None
    found = _read(path)
    if isinstance(found, dict):
        return found, None
    return {}, f"{quoted(MODEL_CONFIG)} in {quoted(folder)} {found}: {UNKNOWN_WITHOUT}"


def _read(path: Path) -> dict[str, Any] | str:
    """The object in the file; or what is wrong with it, as the end of a sentence."""
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            return f"is larger than {MAX_CONFIG_BYTES:,} bytes"
        content = path.read_bytes()
    except OSError as error:
        return f"cannot be read ({error.strerror or type(error).__name__})"
    if not content.strip():
        return "is empty"
    refuse_pointer(content, path.name)
    try:
        config = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError):
        return "is not valid JSON"
    if not isinstance(config, dict):
        return "is not a JSON object"
    return config or "has no fields"
