"""The Hub's listing of a model's files, and which of them are the weights."""

from __future__ import annotations

from pathlib import Path

from deltarank.checkpoints.folder import (
    WeightFiles,
    choose_safetensors,
    read_owners,
    refuse_missing_shards,
)
from deltarank.checkpoints.hub.client import call_hub
from deltarank.checkpoints.hub.http_ranges import RemoteFile
from deltarank.checkpoints.references import HubRef
from deltarank.checkpoints.weight_names import SAFETENSORS


def list_weights(ref: HubRef, commit: str, folder: Path) -> tuple[WeightFiles, tuple[RemoteFile, ...]] | None:
    """The safetensors files of a model that `find_weights` would choose; None if there are none.

    `folder` is the snapshot with its shard index in it.

    Raises:
        CheckpointError: the Hub cannot be reached.
        HeaderError: the index is invalid, or names a file that is not on the Hub.
    """
    owners = read_owners(folder)
    listed = _list_safetensors(ref, commit, recursive=any("/" in shard for shard in owners.values()))
    weights = choose_safetensors(folder, listed, owners)
    if weights is None:
        return None
    refuse_missing_shards(
        [name for name in weights.names if name not in listed],
        place="on the Hub",
        cure="The upload is incomplete: choose another revision, or tell its publisher.",
    )
    return weights, tuple(listed[name] for name in weights.names)


def _list_safetensors(ref: HubRef, commit: str, *, recursive: bool) -> dict[str, RemoteFile]:
    from huggingface_hub import HfApi, RepoFile

    def request() -> list[RepoFile]:
        entries = HfApi(library_name="deltarank").list_repo_tree(ref.repo_id, revision=commit, recursive=recursive)
        return [entry for entry in entries if isinstance(entry, RepoFile) and entry.path.endswith(SAFETENSORS)]

    files = {}
    for entry in call_hub(ref, request):
        digest = entry.lfs.sha256 if entry.lfs else entry.blob_id
        files[entry.path] = RemoteFile(entry.path, int(entry.size), str(digest).lower(), entry.xet_hash)
    return files
