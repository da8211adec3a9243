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
from deltarank.results import is_hub_url, parse_hub_address
from deltarank.system import expand_home, nearest_path_in_words

HUB_SCHEME = "hf://"
_WEIGHT_FILE = re.compile(r"\.(safetensors|bin|pt|pth|ckpt|gguf|json)$", re.IGNORECASE)
_CURE = (
    "Give a folder, a file of weights, or a model on the Hub: org/name, org/name@revision or the address of its page."
)


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
    """A path that exists takes precedence, then a path in a folder that exists; else `org/name` is a Hub id.

    `hf://org/name` and the address of a model's page are never paths; a leading `~` is the home folder.

    Raises:
        CheckpointError: (slug "no-such-checkpoint") a path that does not exist.
        CheckpointError: (slug "several-checkpoints") a model's folder in the Hub's cache with several snapshots.
        UsageError: (slug "bad-reference") neither a path nor a Hub id, or a revision that does not apply.
    """
    text = os.fspath(ref)
    if not isinstance(text, str) or not text.strip() or "\0" in text:
        _refuse(f"{quoted(text)} is not a reference to a checkpoint.")
    text = expand_home(text)
    path = Path(text)
    if isinstance(ref, str) and is_hub_url(text) and (":" in text or not _exists(path)):
        return _hub_ref(text, revision)
    if _exists(path):
        return _local_ref(path, text, revision)
    if not isinstance(ref, str) or _looks_like_a_path(text):
        raise _no_such_path(text)
    if revision is None and parse_hub_address(text) is not None:
        _refuse_neighbours(path, text)
    return _hub_ref(text, revision)


def _refuse_neighbours(path: Path, text: str) -> None:
    """`models/name` is a path where a folder `models` is here, even if it has no `name`: the Hub is not asked."""
    if _exists(path.parent) and path.parent != Path():
        raise _no_such_path(text, cure=f"Correct the path. If you mean a model on the Hub, write {HUB_SCHEME}{text}.")


def _no_such_path(text: str, *, cure: str = _CURE) -> CheckpointError:
    message = f"There is no file or folder {quoted(text, max_length=300)}.{nearest_path_in_words(text)}"
    return CheckpointError(message, cure=cure, slug="no-such-checkpoint")


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


def _hub_ref(text: str, revision: str | None) -> HubRef:
    address = parse_hub_address(text)
    if address is None:
        _refuse(f"{quoted(text)} is neither a local path nor a Hub id.{nearest_path_in_words(text)}")
    if address.revision is not None and revision is not None and address.revision != revision:
        _refuse(f"Two revisions were given: {quoted(text)} and {quoted(revision)}.", cure="Give the revision once.")
    return HubRef(address.repo_id, address.revision or revision)


def _refuse(message: str, *, cure: str = _CURE) -> NoReturn:
    raise UsageError(message, cure=cure, slug="bad-reference")
