"""What the world does to a streamed checkpoint, with the real client against a Hub and a storage on this machine."""

import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from files import llama, save

from deltarank.checkpoints.hub import fetch as fetch_module
from deltarank.checkpoints.hub.fetch import MIN_FREE_BYTES
from deltarank.checkpoints.references import HubRef
from deltarank.results import size
from hub import TOKEN, Client, FakeHub, Fault

BIG = llama(hidden=256, words=900, layers=2)
"""2.1 MB in three files, each larger than what comes with its header."""

TENSOR = "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeHub]:
    root = tmp_path_factory.mktemp("hub")
    with FakeHub() as hub:
        hub.add("org/big", save(root / "big", BIG, shards=3, config={"model_type": "llama"}))
        hub.add("org/one", save(root / "one", BIG))
        hub.add("org/small", save(root / "small", llama()))
        hub.add("org/busy", root / "small")
        hub.add("org/private", root / "small", private=True)
        hub.add("org/gated", root / "small", gated=True)
        yield hub


@pytest.fixture(autouse=True)
def _without_faults(hub: FakeHub) -> Iterator[None]:
    hub.forget()
    yield
    hub.forget()
    hub.redirects = True


@pytest.fixture(scope="module")
def client(hub: FakeHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    home = tmp_path_factory.mktemp("home")
    with Client(hub, home, MAX_RETRY_DELAY="0.05", HF_HUB_DOWNLOAD_TIMEOUT="1") as client:
        yield client
        assert list(home.rglob("*.safetensors")) == []


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keeper")


@pytest.fixture(scope="module")
def keeper(hub: FakeHub, home: Path) -> Iterator[Client]:
    """A client that may download, and has a token."""
    with Client(hub, home, HF_TOKEN=TOKEN, MAX_RETRY_DELAY="0.05") as keeper:
        yield keeper


@pytest.fixture(scope="module")
def truth(hub: FakeHub, client: Client) -> dict[str, Any]:
    """Hashes of all tensors by the local run."""
    folder = hub.repos["org/big"].folders["main"]
    found: dict[str, Any] = client.read(str(folder), "auto")["hashes"]
    assert found.keys() == BIG.keys()
    return found


@pytest.mark.parametrize("redirects", [True, False])
def test_streamed_bytes_are_the_files_bytes(
    redirects: bool, hub: FakeHub, client: Client, truth: dict[str, Any]
) -> None:
    """Whether the Hub leads to a storage or serves the weights itself; a token never goes to the storage."""
    hub.redirects = redirects
    assert client.read("org/big", "stream")["hashes"] == truth
    assert hub.secrets == []


def test_a_url_is_resolved_once_and_a_header_takes_one_request(hub: FakeHub, client: Client) -> None:
    assert client.ask("org/big", None, "stream")["traffic"][0] == 3
    assert [part.start for part in hub.sent] == [0, 0, 0]
    hub.forget()
    client.read("org/big", "stream")
    resolved = [path for method, path in hub.requests if path.endswith(".safetensors")]
    assert len(resolved) == 3


def test_streamed_and_downloaded_checkpoints_have_equal_fingerprints(
    hub: FakeHub, client: Client, keeper: Client
) -> None:
    """So one way goes on with a run that the other began."""
    streamed = client.ask("org/big", None, "stream")
    downloaded = keeper.ask("org/big", None, "download")
    hub.forget()
    cached = keeper.ask("org/big", None, "stream")
    assert hub.sent == []
    for key in ("fingerprint", "revision", "files", "tensors", "config"):
        assert streamed[key] == downloaded[key] == cached[key]


def test_cached_files_are_not_streamed(hub: FakeHub, keeper: Client, home: Path, truth: dict[str, Any]) -> None:
    keeper.ask("org/big", None, "download")
    next(home.glob("hub/models--org--big/snapshots/*/model-00002-of-00003.safetensors")).unlink()
    hub.forget()
    assert keeper.read("org/big", "stream")["hashes"] == truth
    assert {part.file for part in hub.sent} == {"model-00002-of-00003.safetensors"}


def test_a_note_says_what_is_streamed(client: Client) -> None:
    notes = client.ask("org/big", None, "stream")["fetch_notes"]
    assert notes == ["Streaming 2.1 MB of `org/big` without saving it."]


def test_auto_decides_by_free_disk_space(hub: FakeHub, keeper: Client, home: Path) -> None:
    free = shutil.disk_usage(home).free
    (note,) = keeper.ask("org/one", None, "auto")["fetch_notes"]
    assert note.startswith("Downloading" if free > MIN_FREE_BYTES + 3_000_000 else "Streaming")
    assert "free" in note


@pytest.mark.parametrize(
    ("free", "streamed"), [(MIN_FREE_BYTES, True), (MIN_FREE_BYTES + 99, True), (MIN_FREE_BYTES + 100, False)]
)
def test_auto_streams_unless_the_disk_keeps_free_space(
    free: int, streamed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    monkeypatch.setattr(fetch_module.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10 * free, 0, free))
    assert fetch_module.is_streamed(HubRef("org/a"), "auto", 100, notes.append) == streamed
    action = "Streaming 100 B of `org/a` without saving it"
    action = action if streamed else "Downloading 100 B of `org/a` into the Hub's cache"
    assert notes == [f"{action} ({size(free)} of disk space free)."]


CUTS = random.Random(5)


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param([Fault("cut", at=CUTS.randrange(1, 250_000)) for _ in range(12)], id="cut at random bytes"),
        pytest.param([Fault("cut", at=0, times=3)], id="cut before the first byte"),
        pytest.param([Fault("mute", times=3)], id="hung up"),
        pytest.param([Fault("status", status=500, times=3), Fault("status", status=503, after=2)], id="500s"),
        pytest.param([Fault("status", status=429, times=2)], id="429 that does not say how long"),
        pytest.param([Fault("long")], id="Content-Length too long"),
        pytest.param([Fault("short", times=2)], id="Content-Length too short"),
        pytest.param([Fault("whole", times=5)], id="range ignored"),
        pytest.param([Fault("status", status=403, place="storage", after=3)], id="link refused once"),
    ],
)
def test_connection_faults_do_not_change_the_bytes(
    faults: list[Fault], hub: FakeHub, client: Client, truth: dict[str, Any]
) -> None:
    hub.faults = [Fault(**vars(fault)) for fault in faults]
    assert client.read("org/big", "stream").get("hashes") == truth
    assert all(fault.times == 0 for fault in hub.faults), "a fault was not met"


def test_a_truncated_body_is_continued(hub: FakeHub, client: Client) -> None:
    hub.faults = [Fault("cut", at=100_000)]
    client.read("org/one", "stream", TENSOR)
    assert [part.start for part in hub.sent][:2] == [0, 100_000]


def test_a_stalled_body_is_requested_again(hub: FakeHub, client: Client, truth: dict[str, Any]) -> None:
    hub.faults = [Fault("stall", at=50_000)]
    assert client.read("org/big", "stream")["hashes"] == truth
    hub.faults, already = [Fault("stall", at=50_000)], len(hub.sent)
    client.read("org/one", "stream", TENSOR)
    assert [part.start for part in hub.sent[already:]][:2] == [0, 50_000]


def test_a_requested_delay_is_obeyed(hub: FakeHub, client: Client, truth: dict[str, Any]) -> None:
    hub.faults = [Fault("status", status=429, headers={"Retry-After": "1"}, after=1)]
    began = time.monotonic()
    assert client.read("org/big", "stream")["hashes"] == truth
    assert time.monotonic() - began >= 0.9


@pytest.mark.parametrize("fetch", ["stream", "download"])
def test_a_busy_hub_is_retried_before_anything_is_read(fetch: str, hub: FakeHub, keeper: Client) -> None:
    hub.faults = [
        Fault("status", status=503, times=2, place="api"),
        Fault("status", status=429, headers={"Retry-After": "0"}, place="api"),
    ]
    assert "tensors" in keeper.ask("org/busy", None, fetch)
    assert all(fault.times == 0 for fault in hub.faults)


def test_an_expired_link_is_resolved_again(hub: FakeHub, client: Client, truth: dict[str, Any]) -> None:
    hub.then = lambda number: hub.expire_links() if number in (3, 6) else None
    assert client.read("org/big", "stream")["hashes"] == truth
    resolved = [path for method, path in hub.requests if path.endswith(".safetensors")]
    assert 3 < len(resolved) <= 9


def test_hashes_of_small_files_are_checked(hub: FakeHub, client: Client) -> None:
    whole = client.read("org/small", "stream")["hashes"]
    hub.faults = [Fault("flip", at=8000)]
    assert client.read("org/small", "stream")["hashes"] == whole
    hub.faults = [Fault("flip", at=8000, times=2)]
    assert client.read("org/small", "stream")["slug"] == "damaged"


def test_a_damaged_header_is_refused(hub: FakeHub, client: Client) -> None:
    hub.faults = [Fault("flip", at=8)]
    assert client.read("org/one", "stream")["slug"] == "bad-header"


@pytest.mark.parametrize("kind", ["shifted", "zipped"])
def test_bytes_of_another_range_are_refused(kind: str, hub: FakeHub, client: Client) -> None:
    hub.faults = [Fault(kind, times=99)]
    assert client.read("org/one", "stream")["slug"] == "unreadable"


def test_a_damaged_download_is_deleted(hub: FakeHub, keeper: Client) -> None:
    hub.faults = [Fault("flip", at=8000)]
    assert keeper.ask("org/small", None, "download")["slug"] == "damaged"
    assert "tensors" in keeper.ask("org/small", None, "download")


def test_a_server_that_stays_down_ends_the_run(hub: FakeHub, client: Client) -> None:
    hub.faults = [Fault("status", status=503, times=999, after=4)]
    answer = client.read("org/big", "stream")
    assert (answer["error"], answer["slug"]) == ("JobError", "hub-lost")
    assert "8 times in a row" in answer["message"]


@pytest.mark.parametrize(
    ("how", "slug"), [("gone", "hub-not-found"), ("gated", "hub-gated"), ("moved", "hub-no-revision")]
)
def test_a_model_deleted_during_the_run(how: str, slug: str, hub: FakeHub, client: Client, tmp_path: Path) -> None:
    """The link of a running stream expires, and behind it is nothing any more."""
    hub.repos.pop("org/leaving", None)
    repo = hub.add("org/leaving", save(tmp_path / "leaving", BIG))

    def leave(number: int) -> None:
        if number == 2:
            hub.expire_links()
            if how == "gone":
                del hub.repos["org/leaving"]
            elif how == "gated":
                repo.gated = True
            else:
                repo.folders["main"] = hub.repos["org/small"].folders["main"]

    hub.then = leave
    answer = client.read("org/leaving", "stream")
    assert (answer.get("error"), answer.get("slug")) == ("JobError", slug)


def test_a_token_opens_a_private_model_and_is_sent_to_the_hub_only(hub: FakeHub, keeper: Client) -> None:
    assert "hashes" in keeper.read("org/private", "stream")
    assert "hashes" in keeper.read("org/gated", "stream")
    assert len(hub.sent) == 2
    assert hub.secrets == []
    assert "hashes" in keeper.read("org/private", "download")
    assert "hashes" in keeper.read("org/gated", "download")


@pytest.mark.slow
def test_a_host_that_does_not_resolve_is_reported(hub: FakeHub, tmp_path: Path) -> None:
    with Client(hub, tmp_path, HF_ENDPOINT="http://nowhere.invalid") as client:
        assert client.ask("org/big", None, "stream")["slug"] == "hub-unreachable"


def test_a_storage_host_that_does_not_resolve_ends_the_run(hub: FakeHub, client: Client) -> None:
    storage, hub.storage = hub.storage, "http://nowhere.invalid"
    try:
        assert client.read("org/big", "stream")["slug"] == "hub-lost"
    finally:
        hub.storage = storage


def test_a_full_disk_is_reported(hub: FakeHub, tmp_path: Path) -> None:
    """A limit on the size of files stands in for a full disk: the client's own writing fails."""
    with Client(hub, tmp_path, most_bytes=100_000) as client:
        answer = client.ask("org/big", None, "download")
        assert answer.get("slug") == "disk-full", answer
        assert "--stream" in answer["cure"]
        assert "hashes" in client.read("org/big", "stream")
    assert not list((tmp_path / "hub").glob("models--org--big/snapshots/*/*.safetensors"))
