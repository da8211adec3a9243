"""The Hub's listing of a model's files, and which of them are the weights."""

from __future__ import annotations

from pathlib import Path

from deltarank.checkpoints.escape import quoted
from deltarank.checkpoints.folder import (
    WeightFiles,
    choose_safetensors,
    read_owners,
    refuse_missing_shards,
)
from deltarank.checkpoints.hub.client import call_hub
from deltarank.checkpoints.hub.http_ranges import RemoteFile
from deltarank.checkpoints.other_formats import refuse_folder_by_names
from deltarank.checkpoints.references import HubRef
from deltarank.checkpoints.subfolders import has_weights
from deltarank.checkpoints.weight_names import SAFETENSORS
from deltarank.errors import CheckpointError
from deltarank.results import listing


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


def refuse_by_listing(ref: HubRef) -> None:
    """Says what a repository without weights at its top holds instead: in folders, or in another format.

    Raises:
        CheckpointError: its files show it. Nothing is raised if the Hub cannot be asked.
    """
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        return
    names = call_hub(ref, lambda: HfApi(library_name="deltarank").list_repo_files(ref.repo_id, revision=ref.revision))
    by_folder: dict[str, list[str]] = {}
    for folder, _, name in (path.rpartition("/") for path in names):
        by_folder.setdefault(folder, []).append(name)
    found = sorted(folder for folder, inner in by_folder.items() if folder and has_weights(inner))
    if found:
        folders = listing([quoted(name) for name in found], most=4)
        raise CheckpointError(
            f"{quoted(ref.repo_id)} has no weights at its top, but in {folders}.",
            cure=f'Download one: `hf download {ref.repo_id} --include "{found[0]}/*" --local-dir DIR`. Then give '
            f"`DIR/{found[0]}`.",
            slug="no-weights",
        )
    refuse_folder_by_names(ref.repo_id, names)
