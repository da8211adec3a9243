"""A reference as users write it: a folder, a file, or a model on the Hub."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from deltarank.checkpoints.escape import shown
from deltarank.errors import CheckpointError, UsageError

HUB_SCHEME = "hf://"
_HUB_ID = re.compile(r"(?P<id>[\w][\w.-]{0,95}/[\w][\w.-]{0,95})(?:@(?P<revision>[^@\s]{1,200}))?", re.ASCII)
_WEIGHT_FILE = re.compile(r"\.(safetensors|bin|pt|pth|ckpt|gguf|json)$", re.IGNORECASE)
_HOW = "Give a folder, a .safetensors file, or a Hub id such as org/name or org/name@revision."


@dataclass(frozen=True)
class LocalRef:
    """A folder or file that exists."""

    path: Path
    ref: str


@dataclass(frozen=True)
class HubRef:
    """A model repository; `revision` is a branch, tag or commit, None for the default branch."""

    repo_id: str
    revision: str | None = None

    @property
    def ref(self) -> str:
        return self.repo_id


def parse_ref(ref: str | os.PathLike[str], revision: str | None = None) -> LocalRef | HubRef:
    """What exists on this machine is meant first; then `org/name` is a Hub id. `hf://org/name` is always one.

    Raises:
        CheckpointError: (slug "no-such-checkpoint") a path that does not exist.
        UsageError: (slug "bad-reference") neither a path nor a Hub id, or a revision that cannot apply.
    """
    text = os.fspath(ref)
    if not isinstance(text, str) or not text.strip() or "\0" in text:
        raise UsageError(f"{shown(text)} names no checkpoint.", cure=_HOW, slug="bad-reference")
    if isinstance(ref, str) and text.startswith(HUB_SCHEME):
        return _hub(text.removeprefix(HUB_SCHEME), revision, text)
    path = Path(text).expanduser() if text.startswith("~") else Path(text)
    if _exists(path):
        return _local(path, text, revision)
    if not isinstance(ref, str) or _looks_like_a_path(text):
        raise CheckpointError(f"There is no {shown(text, most=300)} here.", cure=_HOW, slug="no-such-checkpoint")
    return _hub(text, revision, text)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # A name too long for a path, a folder that may not be entered.
        return False


def _local(path: Path, text: str, revision: str | None) -> LocalRef:
    if revision is not None:
        raise UsageError(
            f"{shown(text)} is on this machine and has no revisions, but revision {shown(revision)} was asked for.",
            cure="Leave the revision out, or give a Hub id.",
            slug="bad-reference",
        )
    # A page that is posted shows the reference: "." would name nothing.
    plain = str(path.resolve()) if path.name in ("", "..") else text
    return LocalRef(path, plain)


def _looks_like_a_path(text: str) -> bool:
    return (
        text.startswith(("/", ".", "~"))
        or "\\" in text
        or text.endswith("/")
        or (text.count("/") > 1 and "://" not in text and "@" not in text)
        or _WEIGHT_FILE.search(text) is not None
    )


def _hub(text: str, revision: str | None, whole: str) -> HubRef:
    match = _HUB_ID.fullmatch(text)
    if match is None:
        raise UsageError(
            f"{shown(whole)} is neither a path on this machine nor a Hub id.", cure=_HOW, slug="bad-reference"
        )
    own = match["revision"]
    if own is not None and revision is not None and own != revision:
        raise UsageError(
            f"{shown(whole)} names one revision, and {shown(revision)} was asked for beside it.",
            cure="Give the revision once.",
            slug="bad-reference",
        )
    return HubRef(match["id"], own or revision)
