"""The folder of a model in the Hub's cache, `models--org--name`: which of its snapshots is meant."""

from __future__ import annotations

import re
from pathlib import Path

from deltarank.checkpoints.escape import quoted
from deltarank.errors import CheckpointError
from deltarank.results import listing

_MODEL = re.compile(r"models--(?P<id>.+)")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_MAX_REF_BYTES = 200


def find_snapshot(folder: Path) -> Path | None:
    """The snapshot that `refs/main` names, else the only one; None if this is not the cache's folder of a model.

    `folder` is `models--org--name`, or the `snapshots` in it.

    Raises:
        CheckpointError: (slug "several-checkpoints") there are several, and refs/main does not say which.
    """
    home = folder.parent if folder.name == "snapshots" else folder
    if not ((home / "snapshots").is_dir() and ((home / "blobs").is_dir() or _MODEL.fullmatch(home.resolve().name))):
        return None
    snapshots = sorted(path for path in (home / "snapshots").iterdir() if path.is_dir())
    by_name = {path.name: path for path in snapshots}
    main = by_name.get(_read_ref(home / "refs" / "main"))
    if main is None and len(snapshots) > 1:
        raise CheckpointError(
            f"{quoted(folder, max_length=300)} is a model's folder in the Hub's cache, and contains several snapshots: "
            f"{listing([quoted(name) for name in by_name], most=4)}.",
            cure=f"Give the path of one, such as {quoted(snapshots[0], max_length=300)}.",
            slug="several-checkpoints",
        )
    return main or next(iter(snapshots), None)


def unfinished_blobs(folder: Path) -> list[str]:
    """Names of downloads that did not finish, of a snapshot, or of a folder that `hf download --local-dir` filled."""
    places = [folder / ".cache" / "huggingface" / "download"]
    if _COMMIT.fullmatch(folder.name) or folder.parent.name == "snapshots":
        places.append(folder.parent.parent / "blobs")
    return [path.name for place in places if place.is_dir() for path in sorted(place.glob("**/*.incomplete"))]


def hub_id(folder: Path) -> str | None:
    """org/name of a snapshot in the cache."""
    match = _MODEL.fullmatch(folder.parent.parent.name)
    return match["id"].replace("--", "/", 1) if match else None


def _read_ref(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_REF_BYTES).decode("ascii", "replace").strip()
    except OSError:
        return ""
