"""Calls to huggingface_hub: downloads into its usual cache, and its errors as ours.

`HF_HOME`, `HF_TOKEN`, `HF_ENDPOINT` and `HF_HUB_OFFLINE` work as they do everywhere.
"""

from __future__ import annotations

import errno
import glob
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from deltarank.checkpoints.escape import quoted
from deltarank.checkpoints.folder import SINGLE, read_owners
from deltarank.checkpoints.formats.shard_index import BIN_INDEX_SUFFIX, INDEX_SUFFIX
from deltarank.checkpoints.hub.backoff import RETRIED_STATUSES, Backoff, TransferError, requested_delay
from deltarank.checkpoints.hub.checksums import check_downloads
from deltarank.checkpoints.named_bases import MODEL_CARD
from deltarank.checkpoints.references import HubRef
from deltarank.checkpoints.weight_names import ADAPTER_CONFIG, SAFETENSORS
from deltarank.errors import CheckpointError, DeltarankError, UsageError
from deltarank.system import nearest_path_in_words

_T = TypeVar("_T")

_DISK_FULL = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}
_METADATA = ("*" + INDEX_SUFFIX, "config.json", ADAPTER_CONFIG, MODEL_CARD)
_PICKLED = ("pytorch_model*.bin", "pytorch_model*" + BIN_INDEX_SUFFIX)


def download(ref: HubRef) -> tuple[Path, str]:
    """The snapshot folder with all the weights of a model in it, and its commit.

    `model.safetensors` if there is one, else the shards that the index names, else every safetensors file at the
    top level, else PyTorch's `pytorch_model*.bin`. An index is checked before any file that it names is requested.

    Raises:
        CheckpointError: not found, gated, corrupted during download, or the Hub cannot be reached; or the disk is full.
        HeaderError: the index is invalid.
    """
    folder, commit = download_metadata(ref)
    before = _weights(folder)
    _download(ref, commit, [SINGLE])
    if not (folder / SINGLE).is_file():
        shards = sorted({glob.escape(shard) for shard in read_owners(folder).values()})
        _download(ref, commit, shards or ["*" + SAFETENSORS])
        if not shards and not any(folder.glob("*" + SAFETENSORS)):
            _download(ref, commit, _PICKLED)
        if not shards and not _weights(folder):
            raise _no_weights(ref)
    check_downloads(_weights(folder) - before)
    return folder, commit


def _weights(folder: Path) -> set[Path]:
    return {*folder.rglob("*" + SAFETENSORS), *folder.rglob("*.bin")}


def download_metadata(ref: HubRef) -> tuple[Path, str]:
    """The snapshot folder with config.json, the shard index and an adapter's configuration in it, and its commit.

    One request resolves the commit, and all later ones name it: a push in between changes nothing.
    """
    folder = _download(ref, ref.revision, _METADATA)
    return folder, folder.name


def download_files(ref: HubRef, names: Sequence[str]) -> tuple[Path, str]:
    """The snapshot folder with those of these files in it that the repository has, and its commit.

    Their hashes are checked even if they were in the cache.

    Raises:
        CheckpointError: not found, gated, damaged, or the Hub cannot be reached; or the disk is full.
    """
    folder = _download(ref, ref.revision, [glob.escape(name) for name in names])
    check_downloads(path for path in map(folder.joinpath, names) if path.is_file())
    return folder, folder.name


def _no_weights(ref: HubRef) -> CheckpointError:
    return CheckpointError(
        f"{quoted(ref.repo_id)} has neither safetensors files nor a `pytorch_model.bin` at this revision.",
        cure="Look among the model's branches and pull requests for a conversion (org/name@refs/pr/1). Give a GGUF "
        "file by its local path, after `hf download`.",
        slug="no-weights",
    )


def _download(ref: HubRef, revision: str | None, patterns: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download

    # fnmatch's * also matches "/", and subfolders may hold other models.
    ignored = None if any("/" in pattern for pattern in patterns) else ["*/*"]
    folder = call_hub(
        ref,
        lambda: snapshot_download(
            ref.repo_id,
            revision=revision,
            allow_patterns=list(patterns),
            ignore_patterns=ignored,
            library_name="deltarank",
        ),
    )
    return Path(folder)


def call_hub(ref: HubRef, request: Callable[[], _T]) -> _T:
    """Translates the client's exceptions, and retries when the Hub is busy.

    A connection that fails is not retried: at the start of a run the user is present.
    """
    backoff = Backoff()
    while True:
        try:
            return request()
        except DeltarankError:
            raise
        # The client raises its own exceptions, those of its HTTP library and those of Xet, without a common base class.
        except Exception as error:
            busy = _busy_response(error)
            if busy is None:
                raise translate_hub_error(ref, error) from error
            try:
                backoff.wait(f"it answers {busy.status_code}", requested_delay(busy.headers))
            except TransferError:
                raise translate_hub_error(ref, error) from error


def _busy_response(error: Exception) -> Any:
    """The Hub's response if another try may change it. The client may have wrapped the exception once."""
    for exception in (error, error.__cause__):
        response = getattr(exception, "response", None)
        if getattr(response, "status_code", None) in RETRIED_STATUSES:
            return response
    return None


def translate_hub_error(ref: HubRef, error: Exception) -> DeltarankError:
    from huggingface_hub import errors

    model = quoted(ref.repo_id)
    if isinstance(error, errors.HFValidationError):
        return UsageError(f"{model} is not a Hub id.", cure="Give an id such as org/name.", slug="bad-reference")
    if isinstance(error, errors.GatedRepoError):
        return CheckpointError(
            f"{model} is gated: you need its publisher's permission.",
            cure="Request access on the model's page, then set HF_TOKEN or run `hf auth login`.",
            slug="hub-gated",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return CheckpointError(
            f"{model} has no revision {quoted(ref.revision)}.",
            cure="Look up its branches, tags and commits on the model's page.",
            slug="hub-no-revision",
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return CheckpointError(
            f"There is no local folder {model}, and no model of that name on the Hub that you can access."
            f"{nearest_path_in_words(ref.repo_id)}",
            cure="Check the spelling. If the model is private, set HF_TOKEN or run `hf auth login`.",
            slug="hub-not-found",
        )
    if isinstance(error, OSError) and error.errno in _DISK_FULL:
        return CheckpointError(
            f"{model} does not fit on the disk: {quoted(error.strerror)}.",
            cure="Free some space under HF_HOME, set HF_HOME to a larger disk, or use --stream, which saves nothing.",
            slug="disk-full",
        )
    return CheckpointError(
        f"Could not fetch {model} from the Hub: {_first_line(error)}{nearest_path_in_words(ref.repo_id)}",
        cure="Check the network, HF_ENDPOINT, HF_HUB_OFFLINE and the free space under HF_HOME; then run the command "
        "again. Files that arrived complete are kept. If a local folder was meant, check its path.",
        slug="hub-unreachable",
    )


def _first_line(error: Exception) -> str:
    line = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {quoted(line, max_length=300)}."
