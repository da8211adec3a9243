"""A Hub of one process for tests: what the real huggingface_hub client asks of the real Hub, over HTTP on this machine.

    with FakeHub() as hub, Client(hub, tmp_path / "home") as client:
        hub.add("org/model", folder)
        answer = client.ask("org/model")

The client library reads its settings when it is imported, so it runs in a process of its own (`Client`), with
`HF_ENDPOINT` and `HF_HOME` set before. Nothing leaves the machine.
"""

import functools
import hashlib
import http.server
import json
import os
import re
import resource
import threading
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from commands import LineProcess

TOKEN = "hf_for_tests"

_RESOLVE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
_INFO = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)(?:/revision/(?P<revision>[^/]+))?")
_XET_TOKEN = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/xet-read-token/(?P<revision>[^/]+)")
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
            digest.update(path.name.encode() + etag_of(path).encode())
        return digest.hexdigest()


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@dataclass
class Fault:
    """Something that goes wrong with the next `times` requests for weights, after `after` that go well.

    kind: "cut" (the line drops at byte `at` of the body), "stall" (at that byte nothing more comes), "status" (an
    answer of `status` with `headers`), "long" and "short" (a wrong Content-Length), "whole" (the range is ignored),
    "shifted" (another range than asked for), "flip" (a bit of the body's byte `at` is wrong), "zipped" (a compressed
    body), "mute" (no answer at all).
    """

    kind: str
    times: int = 1
    after: int = 0
    at: int = 0
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 3.0
    """How long a stalled body says nothing."""
    place: str = "any"
    """"hub" or "storage", where the Hub's links lead, for weights; "api" for what is asked before."""


@dataclass(frozen=True)
class Sent:
    """A part of a weights file that was asked for: bytes `start` to `end`."""

    file: str
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.start


class FakeHub:
    """Serves what `add` gave it. Weights are a redirect away, on signed links to a storage of another origin.

    requests   (method, path) of all that the Hub itself was asked
    sent       the parts of weights that were asked for, of the Hub or of the storage
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.requests: list[tuple[str, str]] = []
        self.sent: list[Sent] = []
        self.faults: list[Fault] = []
        self.secrets: list[str] = []
        """Authorization headers that came to the storage: none should."""
        self.cut = False
        """Whether transfers of weights break off in the middle."""
        self.redirects = True
        """Whether weights lie on links; else the Hub serves them itself."""
        self.delay = 0.0
        """Seconds before each part of a body."""
        self.then: Callable[[int], object] = lambda number: None
        """Is called before the part of a weights file with this number, from 1 on, is sent."""
        self.xet: dict[str, str] = {}
        """Xet hash by SHA-256, of the files that lie on Xet storage too."""
        self.cas = ""
        self._signature = 0
        self._links: dict[str, Path] = {}
        self._lock = threading.Lock()
        self._servers = [_server(_hub_handler(self)), _server(_storage_handler(self))]
        self.url, self.storage = (f"http://127.0.0.1:{server.server_address[1]}" for server in self._servers)

    def __enter__(self) -> Self:
        self._threads = [threading.Thread(target=server.serve_forever, daemon=True) for server in self._servers]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for server, thread in zip(self._servers, self._threads, strict=True):
            server.shutdown()
            server.server_close()
            thread.join()

    def add(self, repo_id: str, folder: Path, *, revision: str = "main", **flags: bool) -> Repo:
        repo = self.repos.setdefault(repo_id, Repo({}, **flags))
        repo.folders[revision] = folder
        return repo

    def put_on_xet(self, folder: Path, storage: Path) -> None:
        """Uploads the weights of a folder to a storage of hf_xet's own on this disk, where the client finds them."""
        import hf_xet

        self.cas = f"local://{storage}"
        commit = hf_xet.XetSession().new_upload_commit(endpoint=self.cas)
        files = [path for path in files_of(folder) if path.suffix == ".safetensors"]
        uploads = {path: commit.start_upload_file(str(path)) for path in files}
        commit.wait_to_finish()
        self.xet |= {etag_of(path): upload.result().xet_info.hash for path, upload in uploads.items()}

    def downloaded(self) -> list[str]:
        """Names of the files whose contents were sent, in whole or in part."""
        found = (_RESOLVE.fullmatch(path) for method, path in self.requests if method == "GET")
        small = {match["path"] for match in found if match and not match["path"].endswith(".safetensors")}
        return sorted({*small, *(part.file for part in self.sent)})

    def forget(self) -> None:
        """Clears the logs and the faults that were not met."""
        self.requests.clear()
        self.sent.clear()
        self.faults.clear()
        self.then = lambda number: None

    def expire_links(self) -> None:
        """What was signed until now is refused from now on."""
        self._signature += 1

    def link_to(self, path: Path) -> str:
        digest = etag_of(path)
        self._links[digest] = path
        return f"{self.storage}/{digest}/{path.name}?signature={self._signature}"

    def linked(self, url: str) -> Path | None:
        """What a link leads to; None once it has expired."""
        parts = urllib.parse.urlparse(url)
        return self._links.get(parts.path.split("/")[1]) if parts.query == f"signature={self._signature}" else None

    def fault(self, place: str, *, only: bool = False) -> Fault | None:
        """The one that strikes now; `only`: of those that are meant for this place and no other."""
        with self._lock:
            for fault in self.faults:
                if (fault.place == place or (fault.place == "any" and not only)) and fault.times > 0:
                    if fault.after > 0:
                        fault.after -= 1
                        return None
                    fault.times -= 1
                    return fault
        return None


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients hang up when they have what they want: no news."""


def _server(handler: type[http.server.BaseHTTPRequestHandler]) -> _Server:
    return _Server(("127.0.0.1", 0), handler)


class _Handler(http.server.BaseHTTPRequestHandler):
    """What the Hub and its storage have in common: a file is sent, whole or in part, well or badly."""

    protocol_version = "HTTP/1.1"
    hub: FakeHub
    place: str

    def log_message(self, *_: object) -> None:
        """Quiet: the logs of the hub are for tests."""

    def do_HEAD(self) -> None:
        self.serve()

    def do_GET(self) -> None:
        self.serve()

    def serve(self) -> None:
        raise NotImplementedError

    def send_weights(self, path: Path, headers: dict[str, str]) -> None:
        size = path.stat().st_size
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start, end = (int(asked[1]), min(int(asked[2] or size), size - 1) + 1) if asked else (0, size)
        fault = None
        if self.command == "GET":
            self.hub.sent.append(Sent(path.name, start, end))
            self.hub.then(len(self.hub.sent))
            fault = self.hub.fault(self.place)
            if fault is None and self.hub.cut:
                fault = Fault("cut", at=(end - start) // 2)
        kind = fault.kind if fault else None
        if fault and kind == "mute":
            self.close_connection = True
            return
        if fault and kind == "status":
            self.send(fault.status, headers=fault.headers)
            return
        if asked and start >= size:
            self.send(416, headers={"Content-Range": f"bytes */{size}"})
            return
        if kind == "whole":
            asked, start, end = None, 0, size
        if kind == "shifted":
            start, end = (start + 1, end) if end - start > 1 else (start - 1, end)
        body = _part(path, start, end)
        if kind == "flip":
            assert fault
            body = body[: fault.at] + bytes([body[fault.at] ^ 1]) + body[fault.at + 1 :]
        if kind == "zipped":
            headers = headers | {"Content-Encoding": "gzip"}
        if asked:
            headers = headers | {"Content-Range": f"bytes {start}-{end - 1}/{size}"}
        self.send(206 if asked else 200, body, headers=headers, fault=fault)

    def send(
        self,
        status: int,
        body: bytes = b"",
        *,
        error: str | None = None,
        headers: dict[str, str] | None = None,
        fault: Fault | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if error:
            self.send_header("X-Error-Code", error)
            self.send_header("X-Error-Message", f"{error} says the test's Hub")
        kind = fault.kind if fault else None
        stated = {"long": len(body) + 1000, "short": len(body) // 2}.get(kind or "", len(body))
        self.send_header("Content-Length", str(stated))
        self.end_headers()
        if self.command == "HEAD":
            return
        if kind in ("cut", "stall"):
            assert fault
            body = body[: fault.at]
        for first in range(0, len(body[:stated]), 1 << 16):
            if self.hub.delay:
                time.sleep(self.hub.delay)
            self.wfile.write(body[first : min(first + (1 << 16), stated)])
        if kind == "stall":
            self.wfile.flush()
            assert fault
            time.sleep(fault.seconds)
        if kind in ("cut", "stall", "long"):
            self.close_connection = True


def _storage_handler(hub: FakeHub) -> type[_Handler]:
    class Storage(_Handler):
        place = "storage"

        def serve(self) -> None:
            if self.headers.get("Authorization"):
                hub.secrets.append(self.headers["Authorization"])
            path = hub.linked(self.path)
            if path is None:
                self.send(403, b"<Error><Code>AccessDenied</Code></Error>")
                return
            self.send_weights(path, {"ETag": f'"{etag_of(path)[:32]}"', "Accept-Ranges": "bytes"})

    Storage.hub = hub
    return Storage


def _hub_handler(hub: FakeHub) -> type[_Handler]:
    class Hub(_Handler):
        place = "hub"

        def serve(self) -> None:
            path = urllib.parse.unquote(urllib.parse.urlparse(self.path).path)
            hub.requests.append((self.command, path))
            if path.startswith("/api/") and (fault := hub.fault("api", only=True)):
                self.send(fault.status, headers=fault.headers)
                return
            routes: list[tuple[re.Pattern[str], Callable[..., None]]] = [
                (_RESOLVE, self._file),
                (_TREE, self._tree),
                (_XET_TOKEN, self._xet_token),
                (_INFO, self._info),
            ]
            for pattern, answer in routes:
                match = pattern.fullmatch(path)
                if match:
                    self._in_repo(match, answer)
                    return
            self.send(404)

        def _in_repo(self, match: re.Match[str], answer: Callable[..., None]) -> None:
            repo = hub.repos.get(match["repo"])
            known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
            if repo is None or (repo.private and not known):
                self.send(404 if known else 401, error="RepoNotFound")
                return
            revision = match["revision"] or "main"
            folder = repo.folder(revision)
            if folder is None:
                self.send(404, error="RevisionNotFound")
            elif repo.gated and not known and answer == self._file:
                self.send(403, error="GatedRepo")
            else:
                answer(match, folder, repo.commit(revision))

        def _info(self, match: re.Match[str], folder: Path, commit: str) -> None:
            siblings = [{"rfilename": p.relative_to(folder).as_posix()} for p in files_of(folder)]
            self._send_json({"id": match["repo"], "modelId": match["repo"], "sha": commit, "siblings": siblings})

        def _tree(self, match: re.Match[str], folder: Path, commit: str) -> None:
            deep = "recursive=true" in self.path.lower()
            files = files_of(folder) if deep else [p for p in files_of(folder) if p.parent == folder]
            self._send_json([_entry(path, folder, hub.xet) for path in files])

        def _xet_token(self, match: re.Match[str], folder: Path, commit: str) -> None:
            headers = {"X-Xet-Cas-Url": hub.cas, "X-Xet-Access-Token": "t", "X-Xet-Token-Expiration": str(2**33)}
            body = {"casUrl": hub.cas, "accessToken": "t", "exp": 2**33}
            self.send(200, json.dumps(body).encode(), headers=headers)

        def _file(self, match: re.Match[str], folder: Path, commit: str) -> None:
            path = folder / match["path"]
            headers = {"X-Repo-Commit": commit}
            if not path.is_file() or ".." in match["path"].split("/"):
                self.send(404, error="EntryNotFound", headers=headers)
                return
            headers |= {"ETag": f'"{etag_of(path)}"', "Accept-Ranges": "bytes"}
            if path.suffix != ".safetensors":
                self.send(200, path.read_bytes(), headers=headers)
                return
            headers |= {"X-Linked-Etag": f'"{etag_of(path)}"', "X-Linked-Size": str(path.stat().st_size)}
            if etag_of(path) in hub.xet:
                token = f"{hub.url}/api/models/{match['repo']}/xet-read-token/{commit}"
                headers |= {"X-Xet-Hash": hub.xet[etag_of(path)], "Link": f'<{token}>; rel="xet-auth"'}
            if not hub.redirects:
                self.send_weights(path, headers)
                return
            fault = hub.fault("hub") if self.command == "GET" and any(f.place == "hub" for f in hub.faults) else None
            if fault:
                self.send(fault.status, headers=fault.headers)
                return
            self.send(302, headers=headers | {"Location": hub.link_to(path)})

        def _send_json(self, value: object) -> None:
            self.send(200, json.dumps(value).encode(), headers={"Content-Type": "application/json"})

    Hub.hub = hub
    return Hub


def _part(path: Path, start: int, end: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(end - start)


def etag_of(path: Path) -> str:
    """Large files go by SHA-256, others by git's hash."""
    status = path.stat()
    return _etag(path, status.st_size, status.st_mtime_ns)


@functools.cache
def _etag(path: Path, size: int, changed: int) -> str:
    content = path.read_bytes()
    if path.suffix == ".safetensors":
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _entry(path: Path, folder: Path, xet: dict[str, str]) -> dict[str, Any]:
    size = path.stat().st_size
    entry: dict[str, Any] = {"type": "file", "path": path.relative_to(folder).as_posix(), "size": size}
    entry["oid"] = etag_of(path)[:40]
    if path.suffix == ".safetensors":
        entry["lfs"] = {"oid": etag_of(path), "size": size, "pointerSize": 134}
        if etag_of(path) in xet:
            entry["xetHash"] = xet[etag_of(path)]
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
import hashlib, json, os, sys
from deltarank.checkpoints import open_checkpoint, pair_checkpoints
from deltarank.errors import DeltarankError

if "MAX_RETRY_DELAY" in os.environ:  # the same tries as ever, with shorter waits between them
    from deltarank.checkpoints.hub import backoff
    backoff.FIRST_DELAY, backoff.MAX_DELAY = 0.01, float(os.environ["MAX_RETRY_DELAY"])

def describe(ref, revision=None, fetch="download"):
    fetch_notes = []
    with open_checkpoint(ref, revision=revision, fetch=fetch, on_note=fetch_notes.append) as c:
        return {"fetch_notes": fetch_notes, "traffic": c.traffic and (c.traffic.requests, c.traffic.received),
                "ref": c.reference.ref, "revision": c.reference.revision, "files": dict(c.reference.files),
                "tensors": {n: t.shape for n, t in c.tensors.items()}, "config": c.config,
                "fingerprint": c.fingerprint, "notes": c.notes}

def pair(base, finetune, fetch="download"):
    with open_checkpoint(base, fetch=fetch) as a, open_checkpoint(finetune, fetch=fetch) as b:
        return {"pairs": [p.name for p in pair_checkpoints(a, b).pairs]}

def read(ref, fetch, *tensors):
    # SHA-256 of each tensor (of all if none is named), and the sentences heard on the way.
    fetch_notes = []
    with open_checkpoint(ref, fetch=fetch, on_note=fetch_notes.append) as c:
        found = {}
        for name in tensors or c.tensors:
            info = c.tensors[name]
            buffer = bytearray(info.nbytes)
            c.source.read_into(info.file, info.start, memoryview(buffer))
            found[name] = hashlib.sha256(buffer).hexdigest()
        return {"hashes": found, "fetch_notes": fetch_notes, "requests": c.traffic and c.traffic.requests}

for line in sys.stdin:
    verb, *arguments = json.loads(line)
    try:
        answer = {"describe": describe, "pair": pair, "read": read}[verb](*arguments)
    except DeltarankError as error:
        answer = {"error": type(error).__name__, "slug": error.slug, "message": error.message, "cure": error.cure}
    print("@" + json.dumps(answer), flush=True)
"""


class Client(LineProcess):
    """A process with deltarank and the real client library in it, which answers one question after another."""

    def __init__(self, hub: FakeHub, home: Path, *, most_bytes: int | None = None, **environment: str) -> None:
        """`most_bytes` a file may have that this process writes."""

        def limit() -> None:
            if most_bytes is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))

        super().__init__(_CLIENT, client_environment(hub, home, **environment), preexec_fn=limit)

    def ask(self, ref: str, revision: str | None = None, fetch: str = "download") -> dict[str, Any]:
        """What `open_checkpoint` finds, or the error that it raises."""
        return self._answer("describe", ref, revision, fetch)

    def pair(self, base: str, finetune: str, fetch: str = "download") -> dict[str, Any]:
        return self._answer("pair", base, finetune, fetch)

    def read(self, ref: str, fetch: str, *tensors: str) -> dict[str, Any]:
        """Hashes of the tensors' bytes, or the error."""
        return self._answer("read", ref, fetch, *tensors)

    def _answer(self, *request: object) -> dict[str, Any]:
        answer: dict[str, Any] = self.request(request)
        return answer
