"""A Hub of one process for tests: what the real huggingface_hub client asks of the real Hub, over HTTP on this machine.

    with FakeHub() as hub, Client(hub, tmp_path / "home") as client:
        hub.add("org/model", folder)
        answer = client.ask("org/model")

The client library reads its settings when it is imported, so it runs in a process of its own (`Client`), with
`HF_ENDPOINT` and `HF_HOME` set before. Nothing leaves the machine.
"""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import re
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

TOKEN = "hf_for_tests"

_RESOLVE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
_INFO = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)(?:/revision/(?P<revision>[^/]+))?")
_TREE = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)(?:/.*)?")


@dataclass
class Repo:
    """A model repository: a folder for each revision."""

    folders: dict[str, Path]
    private: bool = False
    gated: bool = False
    commits: dict[str, str] = field(default_factory=dict)

    def folder(self, revision: str) -> Path | None:
        """By branch, tag or commit."""
        by_commit = {self.commit(name): path for name, path in self.folders.items()}
        return self.folders.get(revision) or by_commit.get(revision)

    def commit(self, revision: str) -> str:
        """Forty digits that follow from the contents, as a commit's do."""
        if revision not in self.folders:
            return revision
        digest = hashlib.sha1(usedforsecurity=False)
        for path in files_of(self.folders[revision]):
            digest.update(path.name.encode() + path.read_bytes())
        return digest.hexdigest()


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


class FakeHub:
    """Serves what `add` gave it. `requests` lists (method, path) of all that was asked."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.requests: list[tuple[str, str]] = []
        self.cut = False
        """Whether transfers of weights break off in the middle."""
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def add(self, repo_id: str, folder: Path, *, revision: str = "main", **flags: bool) -> Repo:
        repo = self.repos.setdefault(repo_id, Repo({}, **flags))
        repo.folders[revision] = folder
        return repo

    def downloaded(self) -> list[str]:
        """Names of the files whose contents were sent."""
        found = (_RESOLVE.fullmatch(path) for method, path in self.requests if method == "GET")
        return sorted(match["path"] for match in found if match)

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                """Quiet: `requests` is the log."""

            def do_HEAD(self) -> None:
                self._serve()

            def do_GET(self) -> None:
                self._serve()

            def _serve(self) -> None:
                path = urllib.parse.unquote(urllib.parse.urlparse(self.path).path)
                hub.requests.append((self.command, path))
                routes: list[tuple[re.Pattern[str], Callable[..., None]]] = [
                    (_RESOLVE, self._file),
                    (_TREE, self._tree),
                    (_INFO, self._info),
                ]
                for pattern, answer in routes:
                    match = pattern.fullmatch(path)
                    if match:
                        self._in_repo(match, answer)
                        return
                self._send(404)

            def _in_repo(self, match: re.Match[str], answer: Callable[..., None]) -> None:
                repo = hub.repos.get(match["repo"])
                known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
                if repo is None or (repo.private and not known):
                    self._send(404 if known else 401, error="RepoNotFound")
                    return
                revision = match["revision"] or "main"
                folder = repo.folder(revision)
                if folder is None:
                    self._send(404, error="RevisionNotFound")
                elif repo.gated and not known and answer == self._file:
                    self._send(403, error="GatedRepo")
                else:
                    answer(match, folder, repo.commit(revision))

            def _info(self, match: re.Match[str], folder: Path, commit: str) -> None:
                siblings = [{"rfilename": p.relative_to(folder).as_posix()} for p in files_of(folder)]
                self._send_json({"id": match["repo"], "modelId": match["repo"], "sha": commit, "siblings": siblings})

            def _tree(self, match: re.Match[str], folder: Path, commit: str) -> None:
                self._send_json([_entry(path, folder) for path in files_of(folder)])

            def _file(self, match: re.Match[str], folder: Path, commit: str) -> None:
                path = folder / match["path"]
                headers = {"X-Repo-Commit": commit}
                if not path.is_file() or ".." in match["path"].split("/"):
                    self._send(404, error="EntryNotFound", headers=headers)
                    return
                content = path.read_bytes()
                headers |= {"ETag": f'"{_etag(path)}"', "Accept-Ranges": "bytes"}
                if path.suffix == ".safetensors":
                    headers |= {"X-Linked-Etag": f'"{_etag(path)}"', "X-Linked-Size": str(len(content))}
                self._send(200, content, headers=headers, cut=hub.cut and path.suffix == ".safetensors")

            def _send_json(self, value: object) -> None:
                self._send(200, json.dumps(value).encode(), headers={"Content-Type": "application/json"})

            def _send(
                self,
                status: int,
                body: bytes = b"",
                *,
                error: str | None = None,
                headers: dict[str, str] | None = None,
                cut: bool = False,
            ) -> None:
                self.send_response(status)
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                if error:
                    self.send_header("X-Error-Code", error)
                    self.send_header("X-Error-Message", f"{error} says the test's Hub")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body[: len(body) // 2] if cut else body)
                    self.close_connection = self.close_connection or cut

        return Handler


def _etag(path: Path) -> str:
    """Large files go by SHA-256, others by git's hash."""
    content = path.read_bytes()
    if path.suffix == ".safetensors":
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _entry(path: Path, folder: Path) -> dict[str, Any]:
    size = path.stat().st_size
    entry: dict[str, Any] = {"type": "file", "path": path.relative_to(folder).as_posix(), "size": size}
    entry["oid"] = _etag(path)[:40]
    if path.suffix == ".safetensors":
        entry["lfs"] = {"oid": _etag(path), "size": size, "pointerSize": 134}
    return entry


def client_environment(hub: FakeHub, home: Path, **more: str) -> dict[str, str]:
    """The environment for any process that should see this Hub and nothing else."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING")) and "proxy" not in k.lower()}
    return clean | {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DOWNLOAD_TIMEOUT": "5",
        **more,
    }


_CLIENT = """
import json, sys
from deltarank.checkpoints import open_checkpoint, pair_checkpoints
from deltarank.errors import DeltarankError

def describe(ref, revision=None):
    with open_checkpoint(ref, revision=revision) as c:
        return {"ref": c.reference.ref, "revision": c.reference.revision, "files": dict(c.reference.files),
                "tensors": {n: t.shape for n, t in c.tensors.items()}, "config": c.config,
                "fingerprint": c.fingerprint, "notes": c.notes}

def pair(base, finetune):
    with open_checkpoint(base) as a, open_checkpoint(finetune) as b:
        return {"pairs": [p.name for p in pair_checkpoints(a, b).pairs]}

for line in sys.stdin:
    verb, *arguments = json.loads(line)
    try:
        answer = {"describe": describe, "pair": pair}[verb](*arguments)
    except DeltarankError as error:
        answer = {"error": type(error).__name__, "slug": error.slug, "message": error.message, "cure": error.cure}
    print(json.dumps(answer), flush=True)
"""


class Client:
    """A process with deltarank and the real client library in it, which answers one question after another."""

    def __init__(self, hub: FakeHub, home: Path, **environment: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error::ResourceWarning", "-c", _CLIENT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=client_environment(hub, home, **environment),
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()

    def ask(self, ref: str, revision: str | None = None) -> dict[str, Any]:
        """What `open_checkpoint` finds, or the error that it raises."""
        return self._call("describe", ref, revision)

    def pair(self, base: str, finetune: str) -> dict[str, Any]:
        return self._call("pair", base, finetune)

    def _call(self, *request: object) -> dict[str, Any]:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer
