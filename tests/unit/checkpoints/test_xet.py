"""Streaming over Xet, through the real hf_xet with a storage on this disk, and over HTTP where that fails."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from files import llama, save

from hub import Client, FakeHub

BIG = llama(hidden=256, words=900, layers=2)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeHub]:
    root = tmp_path_factory.mktemp("hub")
    with FakeHub() as hub:
        hub.add("org/big", save(root / "big", BIG, shards=3))
        hub.put_on_xet(root / "big", tmp_path_factory.mktemp("cas"))
        yield hub


@pytest.fixture(scope="module")
def client(hub: FakeHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with Client(hub, tmp_path_factory.mktemp("home"), MAX_RETRY_DELAY="0.05") as client:
        yield client


@pytest.fixture(scope="module")
def truth(hub: FakeHub, client: Client) -> dict[str, Any]:
    found: dict[str, Any] = client.read(str(hub.repos["org/big"].folders["main"]), "auto")["hashes"]
    assert found.keys() == BIG.keys()
    return found


def test_a_model_on_xet_is_read_there_with_one_token_for_all_its_files(
    hub: FakeHub, client: Client, truth: dict[str, Any]
) -> None:
    hub.forget()
    answer = client.read("org/big", "stream")
    assert answer["hashes"] == truth
    assert hub.sent == []
    assert not any(path.endswith(".safetensors") for _, path in hub.requests)
    assert 1 <= sum("xet-read-token" in path for _, path in hub.requests) <= 2


@pytest.fixture
def elsewhere(hub: FakeHub, tmp_path: Path) -> Iterator[FakeHub]:
    """The tokens lead to a storage that has nothing."""
    cas, hub.cas = hub.cas, f"local://{tmp_path}"
    yield hub
    hub.cas = cas


def test_bytes_that_xet_does_not_deliver_come_over_http(
    elsewhere: FakeHub, client: Client, truth: dict[str, Any]
) -> None:
    elsewhere.forget()
    answer = client.read("org/big", "stream")
    assert answer["hashes"] == truth
    assert {part.file for part in elsewhere.sent} == {f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)}
    assert any("continues over HTTP" in sentence for sentence in answer["fetch_notes"])


@pytest.mark.slow
def test_a_silent_xet_storage_is_replaced_by_http(elsewhere: FakeHub, tmp_path: Path, truth: dict[str, Any]) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as mute,
        Client(elsewhere, tmp_path, HF_HUB_DOWNLOAD_TIMEOUT="1") as client,
    ):
        elsewhere.cas = f"http://127.0.0.1:{mute.getsockname()[1]}"
        assert client.read("org/big", "stream")["hashes"] == truth
