"""A reference as users write it: a folder, a file, or a model on the Hub."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from deltarank.checkpoints.escape import quoted
from deltarank.checkpoints.hub_cache import find_snapshot
from deltarank.errors import CheckpointError, UsageError

HUB_SCHEME = "hf://"
_HUB_ID = re.compile(r"(?P<id>[\w][\w.-]{0,95}/[\w][\w.-]{0,95})(?:@(?P<revision>[^@\s]{1,200}))?", re.ASCII)
_WEIGHT_FILE = re.compile(r"\.(safetensors|bin|pt|pth|ckpt|gguf|json)$", re.IGNORECASE)
_CURE = "Give a folder, a .safetensors file, or a Hub id such as org/name or org/name@revision."


@dataclass(frozen=True)
class LocalRef:
    """A folder or file that exists; `note` says so if it is not the one that was given."""

    path: Path
    ref: str
    note: str | None = None


@dataclass(frozen=True)
class HubRef:
    """A model repository; `revision` is a branch, tag or commit, None for the default branch."""

    repo_id: str
    revision: str | None = None

    @property
    def ref(self) -> str:
        return self.repo_id


def parse_ref(ref: str | os.PathLike[str], revision: str | None = None) -> LocalRef | HubRef:
    """A path that exists takes precedence; else `org/name` is a Hub id. `hf://org/name` is always one.

    Raises:
        CheckpointError: (slug "no-such-checkpoint") a path that does not exist.
        CheckpointError: (slug "several-checkpoints") a model's folder in the Hub's cache with several snapshots.
        UsageError: (slug "bad-reference") neither a path nor a Hub id, or a revision that does not apply.
    """
    text = os.fspath(ref)
    if not isinstance(text, str) or not text.strip() or "\0" in text:
        _refuse(f"{quoted(text)} is not a reference to a checkpoint.")
    if isinstance(ref, str) and text.startswith(HUB_SCHEME):
        return _hub_ref(text.removeprefix(HUB_SCHEME), revision, text)
    path = Path(text).expanduser() if text.startswith("~") else Path(text)
    if _exists(path):
        return _local_ref(path, text, revision)
    if not isinstance(ref, str) or _looks_like_a_path(text):
        raise CheckpointError(
            f"There is no file or folder {quoted(text, max_length=300)}.", cure=_CURE, slug="no-such-checkpoint"
        )
    return _hub_ref(text, revision, text)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name too long for a path, or a folder that may not be entered
        return False


def _local_ref(path: Path, text: str, revision: str | None) -> LocalRef:
    if revision is not None:
        _refuse(
            f"{quoted(text)} is a local path and has no revisions, but revision {quoted(revision)} was given.",
            cure="Omit the revision, or give a Hub id.",
        )
    snapshot = find_snapshot(path) if path.is_dir() else None
    if snapshot is not None:
        note = f"{quoted(text, max_length=300)} is in the Hub's cache; its snapshot {quoted(snapshot.name)} is read"
        return LocalRef(snapshot, str(snapshot), note)
    # Reports show the reference: "." would say nothing.
    return LocalRef(path, str(path.resolve()) if path.name in ("", "..") else text)


def _looks_like_a_path(text: str) -> bool:
    return (
        text.startswith(("/", ".", "~"))
        or "\\" in text
        or text.endswith("/")
        or (text.count("/") > 1 and "://" not in text and "@" not in text)
        or _WEIGHT_FILE.search(text) is not None
    )


def _hub_ref(text: str, revision: str | None, whole: str) -> HubRef:
    match = _HUB_ID.fullmatch(text)
    if match is None:
        _refuse(f"{quoted(whole)} is neither a local path nor a Hub id.")
    in_text = match["revision"]
    if in_text is not None and revision is not None and in_text != revision:
        _refuse(f"Two revisions were given: {quoted(whole)} and {quoted(revision)}.", cure="Give the revision once.")
    return HubRef(match["id"], in_text or revision)


def _refuse(message: str, *, cure: str = _CURE) -> NoReturn:
    raise UsageError(message, cure=cure, slug="bad-reference")
