"""What the Hub says of a model's files before any of them is fetched, and which of them are the weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from deltarank.checkpoints.escape import shown
from deltarank.checkpoints.folder import INDEX, SINGLE, Weights, is_complete_set
from deltarank.checkpoints.formats.shard_index import SUFFIX, parse_index
from deltarank.checkpoints.hub.client import at_the_edge
from deltarank.checkpoints.hub.http_ranges import RemoteFile
from deltarank.checkpoints.references import HubRef
from deltarank.errors import HeaderError
from deltarank.results import listing

_SUFFIX = ".safetensors"


def list_weights(ref: HubRef, commit: str, folder: Path) -> tuple[Weights, tuple[RemoteFile, ...]] | None:
    """The safetensors files of a model as `find_weights` would choose them from its folder; None if there are none.

    `folder` is the snapshot with its index in it, which is all that is read.

    Raises:
        CheckpointError: the Hub cannot be asked.
        HeaderError: the index cannot be trusted, or names a file that is not there.
    """
    owners = _owners(folder)
    listed = _listed(ref, commit, deep=any("/" in shard for shard in owners.values()))
    weights = _chosen(folder, listed, owners)
    return (weights, tuple(listed[name] for name in weights.files)) if weights else None


def _owners(folder: Path) -> Mapping[str, str]:
    indexes = sorted(folder.glob("*" + SUFFIX))
    chosen = [path for path in indexes if path.name == INDEX] or indexes
    return parse_index(chosen[0].read_bytes(), file=chosen[0].name) if len(chosen) == 1 else {}


def _listed(ref: HubRef, commit: str, *, deep: bool) -> dict[str, RemoteFile]:
    from huggingface_hub import HfApi, RepoFile

    def ask() -> list[RepoFile]:
        entries = HfApi(library_name="deltarank").list_repo_tree(ref.repo_id, revision=commit, recursive=deep)
        return [entry for entry in entries if isinstance(entry, RepoFile) and entry.path.endswith(_SUFFIX)]

    return {entry.path: _as_remote(entry) for entry in at_the_edge(ref, ask)}


def _as_remote(entry: object) -> RemoteFile:
    from huggingface_hub import RepoFile

    assert isinstance(entry, RepoFile)
    digest = entry.lfs.sha256 if entry.lfs else entry.blob_id
    return RemoteFile(entry.path, int(entry.size), str(digest).lower(), entry.xet_hash)


def _chosen(folder: Path, listed: Mapping[str, RemoteFile], owners: Mapping[str, str]) -> Weights | None:
    if SINGLE in listed:
        return Weights(folder, (SINGLE,))
    if owners:
        files = tuple(sorted(set(owners.values())))
        _check_complete([name for name in files if name not in listed])
        return Weights(folder, files, owners)
    top = sorted(name for name in listed if "/" not in name and not name.startswith("adapter_"))
    return Weights(folder, tuple(top)) if len(top) == 1 or is_complete_set(top) else None


def _check_complete(missing: list[str]) -> None:
    if missing:
        raise HeaderError(
            f"The index names {listing([shown(name) for name in missing], most=3)}, "
            f"and {'it is' if len(missing) == 1 else 'they are'} not on the Hub.",
            cure="The upload is not complete: give another revision, or tell its publisher.",
            slug="missing-shard",
        )
