"""Models on the Hub: into huggingface_hub's usual cache, or streamed where the disk is too small.

`HF_HOME`, `HF_TOKEN`, `HF_ENDPOINT` and `HF_HUB_OFFLINE` work as they do everywhere.
"""

from __future__ import annotations

import errno
import glob
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from deltarank.checkpoints.escape import shown
from deltarank.checkpoints.folder import INDEX, SINGLE
from deltarank.checkpoints.formats.shard_index import PICKLED_SUFFIX, SUFFIX, parse_index
from deltarank.checkpoints.hub.checksums import check_downloads
from deltarank.checkpoints.hub.retry import RETRIED, GaveUpError, Patience, told_wait
from deltarank.checkpoints.references import HubRef
from deltarank.errors import CheckpointError, DeltarankError, UsageError

_T = TypeVar("_T")

_FULL = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}
"""How systems say that nothing more can be written."""

_SMALL = ("*" + SUFFIX, "config.json")
_PICKLED = ("pytorch_model*.bin", "pytorch_model*" + PICKLED_SUFFIX)


def download(ref: HubRef) -> tuple[Path, str]:
    """The snapshot folder with all the weights of a model in it, and the commit that it is.

    `model.safetensors` if there is one, else the shards that the index names, else every safetensors file at the
    top, else torch's `pytorch_model*.bin`. An index is checked before anything that it names is asked for.

    Raises:
        CheckpointError: not found, gated, damaged on the way, or the Hub cannot be reached; or the disk is full.
        HeaderError: the index cannot be trusted.
    """
    folder, commit = snapshot_without_weights(ref)
    before = _weights(folder)
    if not _has_single(ref, commit):
        shards = _shards(folder)
        _download(ref, commit, shards or ("*.safetensors",))
        if not shards and not any(folder.glob("*.safetensors")):
            _download(ref, commit, _PICKLED)
        if not shards and not _weights(folder):
            refuse_without_weights(ref)
    check_downloads(_weights(folder) - before)
    return folder, commit


def _weights(folder: Path) -> set[Path]:
    return {*folder.rglob("*.safetensors"), *folder.rglob("*.bin")}


def snapshot_without_weights(ref: HubRef) -> tuple[Path, str]:
    """The snapshot folder with config.json and the index in it, and the commit.

    One request finds the commit; all that follows names it, so a push in between changes nothing.
    """
    folder = _download(ref, ref.revision, _SMALL)
    return folder, folder.name


def download_named(ref: HubRef, names: Sequence[str]) -> tuple[Path, str]:
    """The snapshot folder with those of these files in it that lie at a repository's top, and the commit.

    Files of the cache are held against their hashes, too: adapters are small.

    Raises:
        CheckpointError: not found, gated, damaged, or the Hub cannot be reached; or the disk is full.
    """
    folder = _download(ref, ref.revision, [glob.escape(name) for name in names])
    check_downloads(path for path in map(folder.joinpath, names) if path.is_file())
    return folder, folder.name


def refuse_without_weights(ref: HubRef) -> NoReturn:
    raise CheckpointError(
        f"{shown(ref.repo_id)} has neither safetensors nor a `pytorch_model.bin` at this revision.",
        cure="Look among the model's branches and pull requests for a conversion (org/name@refs/pr/1). A GGUF file is "
        "read from this machine: `hf download` it, and give its path.",
        slug="no-weights",
    )


def _shards(folder: Path) -> tuple[str, ...]:
    indexes = sorted(folder.glob("*" + SUFFIX)) if folder.is_dir() else []
    chosen = [path for path in indexes if path.name == INDEX] or indexes
    if len(chosen) != 1:
        return ()
    owners = parse_index(chosen[0].read_bytes(), file=chosen[0].name)
    return tuple(sorted({glob.escape(shard) for shard in owners.values()}))


def _download(ref: HubRef, revision: str | None, patterns: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download

    # fnmatch's * crosses folders, and other models of a repository lie in them.
    ignored = None if any("/" in pattern for pattern in patterns) else ["*/*"]
    return Path(
        at_the_edge(
            ref,
            lambda: snapshot_download(
                ref.repo_id,
                revision=revision,
                allow_patterns=list(patterns),
                ignore_patterns=ignored,
                library_name="deltarank",
            ),
        )
    )


def _has_single(ref: HubRef, commit: str) -> bool:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    def ask() -> bool:
        try:
            hf_hub_download(ref.repo_id, SINGLE, revision=commit, library_name="deltarank")
        except EntryNotFoundError:  # Also where offline and not in the cache: the shards may be.
            return False
        return True

    return at_the_edge(ref, ask)


def at_the_edge(ref: HubRef, action: Callable[[], _T]) -> _T:
    """Whatever the client library raises, as an error of ours; what a busy Hub refuses is asked again, in patience.

    A line that does not work is told at once: at the start of a run its user is there.
    """
    patience = Patience()
    while True:
        try:
            return action()
        except DeltarankError:
            raise
        # The client raises its own errors, those of the HTTP library under it, and those of Xet: no common root.
        except Exception as error:
            busy = _busy(error)
            if busy is None:
                raise translated(ref, error) from error
            try:
                patience.wait(f"it answers {busy.status_code}", told_wait(busy.headers))
            except GaveUpError:
                raise translated(ref, error) from error


def _busy(error: Exception) -> Any:
    """The Hub's answer, if it is one that another try may change. The client may have wrapped it once."""
    for each in (error, error.__cause__):
        response = getattr(each, "response", None)
        if getattr(response, "status_code", None) in RETRIED:
            return response
    return None


def translated(ref: HubRef, error: Exception) -> DeltarankError:
    from huggingface_hub import errors

    if isinstance(error, errors.HFValidationError):
        return UsageError(f"{shown(ref.repo_id)} is not a Hub id.", cure="Ids are org/name.", slug="bad-reference")
    if isinstance(error, errors.GatedRepoError):
        return CheckpointError(
            f"{shown(ref.repo_id)} is gated: its publisher lets in only those who asked.",
            cure="Ask on the model's page, then set HF_TOKEN or run `hf auth login`.",
            slug="hub-gated",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return CheckpointError(
            f"{shown(ref.repo_id)} has no revision {shown(ref.revision)}.",
            cure="Look up its branches, tags and commits on the model's page.",
            slug="hub-no-revision",
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return CheckpointError(
            f"There is neither a folder {shown(ref.repo_id)} here nor, for you, a model of that name on the Hub.",
            cure="Check the spelling. If the model is private, set HF_TOKEN or run `hf auth login`.",
            slug="hub-not-found",
        )
    if isinstance(error, OSError) and error.errno in _FULL:
        return CheckpointError(
            f"{shown(ref.repo_id)} does not fit on the disk: {shown(error.strerror)}.",
            cure="Free space under HF_HOME, set HF_HOME to a larger disk, or give --stream, which keeps nothing.",
            slug="disk-full",
        )
    return CheckpointError(
        f"{shown(ref.repo_id)} could not be had from the Hub: {_first_line(error)}",
        cure="Check the network, HF_ENDPOINT, HF_HUB_OFFLINE and the free space under HF_HOME, and run it again: "
        "files that arrived whole are kept.",
        slug="hub-unreachable",
    )


def _first_line(error: Exception) -> str:
    line = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {shown(line, most=300)}."
