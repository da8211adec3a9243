"""Hub ids through the real client library and its cache, against a Hub on this machine."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from files import llama, numbers, save, write_index
from safetensors.torch import save_file

from hub import Client, FakeHub


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeHub]:
    root = tmp_path_factory.mktemp("hub")
    with FakeHub() as hub:
        single = save(root / "single", llama(), config={"model_type": "llama"})
        (single / "pytorch_model.bin").write_bytes(b"pickle")
        save(single / "onnx", llama())
        hub.add("org/single", single)
        hub.add("org/single", save(root / "v2", llama(seed=2)), revision="v2")
        sharded = save(root / "sharded", llama(seed=3), shards=3)
        save_file({"twin": numbers(2, 2)}, sharded / "consolidated.safetensors")
        hub.add("org/sharded", sharded)
        hub.add("org/cut", save(root / "cut", llama(seed=4)))
        hub.add("org/mirror", sharded)
        named = root / "named"
        named.mkdir()
        save_file({"a": numbers(2, 2)}, named / "weights.safetensors")
        hub.add("org/named", named)
        hub.add("org/private", single, private=True)
        hub.add("org/gated", single, gated=True)
        hub.add("org/climber", write_index(root / "climber", {"a": "../../secret.safetensors"}).parent)
        hub.add("org/holes", write_index(root / "holes", {"a": "gone.safetensors"}).parent)
        pickled = root / "pickled"
        pickled.mkdir()
        (pickled / "pytorch_model.bin").write_bytes(b"\x80\x02pickle")
        hub.add("org/pickled", pickled)
        torched = root / "torched"
        torched.mkdir()
        torch.save(dict(llama()), torched / "pytorch_model.bin")
        torch.save({"lr": 1}, torched / "training_args.bin")
        hub.add("org/torched", torched)
        half = save(root / "half", llama(), shards=2)
        (half / "model.safetensors.index.json").unlink()
        (half / "model-00002-of-00002.safetensors").unlink()
        hub.add("org/half", half)
        hub.add("org/nested", save(root / "nested" / "checkpoint-500", llama()).parent)
        (root / "raw" / "global_step10").mkdir(parents=True)
        (root / "raw" / "global_step10" / "mp_rank_00_model_states.pt").write_bytes(b"x")
        hub.add("org/raw", root / "raw")
        hub.add("org/stub", save(save(root / "stub", llama(), shards=2), {"lm_head.weight": numbers(2, 2)}))
        both = save(root / "both", llama())
        (both / "adapter_config.json").write_text("{}")
        hub.add("org/both", both)
        (root / "empty").mkdir()
        (root / "empty" / "config.json").write_text("{}")
        hub.add("org/empty", root / "empty")
        yield hub


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def client(hub: FakeHub, home: Path) -> Iterator[Client]:
    with Client(hub, home) as client:
        yield client


def test_weights_and_configuration_are_fetched_and_nothing_else(hub: FakeHub, client: Client, home: Path) -> None:
    hub.forget()
    found = client.ask("org/single")
    assert hub.downloaded() == ["config.json", "model.safetensors"]
    assert found["ref"] == "org/single"
    assert hub.repos["org/single"].commit("main") == found["revision"]
    assert set(llama()) == set(found["tensors"])
    assert found["config"]["model_type"] == "llama"
    assert (home / "hub" / "models--org--single").is_dir()


def test_a_second_call_fetches_nothing(hub: FakeHub, client: Client) -> None:
    first = client.ask("org/single")
    hub.forget()
    assert first == client.ask("hf://org/single")
    assert hub.downloaded() == []


def test_a_revision_is_a_branch_a_tag_or_a_commit(hub: FakeHub, client: Client) -> None:
    commit = hub.repos["org/single"].commit("v2")
    answers = [client.ask("org/single@v2"), client.ask("org/single", "v2"), client.ask(f"org/single@{commit}")]
    assert {commit} == {answer["revision"] for answer in answers}
    assert len({answer["fingerprint"] for answer in answers}) == 1
    assert client.ask("org/single")["fingerprint"] != answers[0]["fingerprint"]


def test_only_the_shards_that_the_index_names_are_fetched(hub: FakeHub, client: Client) -> None:
    hub.forget()
    found = client.ask("org/sharded")
    assert set(llama()) == set(found["tensors"])
    assert "consolidated.safetensors" not in hub.downloaded()
    assert sum(name.endswith(".safetensors") for name in hub.downloaded()) == 3


def test_a_single_gguf_of_any_name_is_found(client: Client) -> None:
    assert list(client.ask("org/named")["files"]) == ["weights.safetensors"]


def test_pickles_are_downloaded_if_there_are_no_safetensors(hub: FakeHub, client: Client) -> None:
    hub.forget()
    assert set(llama()) == set(client.ask("org/torched")["tensors"])
    assert hub.downloaded() == ["pytorch_model.bin"]


def test_two_ids_can_be_paired(client: Client) -> None:
    assert len(client.pair("org/single", "org/single@v2")["pairs"]) == 6


def test_equal_blobs_under_two_names_are_the_same_checkpoint(client: Client) -> None:
    assert client.pair("org/sharded", "org/mirror")["slug"] == "same-checkpoint"
    assert client.pair("org/single", "hf://org/single@main")["slug"] == "same-checkpoint"


@pytest.mark.parametrize(
    ("ref", "slug"),
    [
        ("org/none", "hub-not-found"),
        ("org/private", "hub-not-found"),
        ("org/gated", "hub-gated"),
        ("org/single@none", "hub-no-revision"),
        ("org/climber", "outside-folder"),
        ("org/holes", "missing-shard"),
        ("org/pickled", "pickled-weights"),
        ("org/empty", "no-weights"),
        ("org/half", "missing-shard"),
        ("org/nested", "no-weights"),
        ("org/raw", "training-checkpoint"),
        ("org/stub", "several-checkpoints"),
        ("a--b/c..d", "bad-reference"),
    ],
)
@pytest.mark.parametrize("fetch", ["download", "stream"])
def test_failures_have_a_message_and_a_cure(fetch: str, ref: str, slug: str, client: Client) -> None:
    answer = client.ask(ref, None, fetch)
    without_safetensors = fetch == "stream" and ref in ("org/pickled", "org/empty", "org/nested", "org/raw")
    assert answer.get("slug") == ("cannot-stream" if without_safetensors else slug), answer
    assert answer["message"].isprintable()
    assert answer["cure"]


def test_folders_with_weights_are_named(client: Client) -> None:
    answer = client.ask("org/nested", None, "download")
    assert "`checkpoint-500`" in answer["message"]
    assert 'hf download org/nested --include "checkpoint-500/*"' in answer["cure"]


@pytest.mark.parametrize("fetch", ["download", "stream"])
def test_an_adapter_beside_the_weights_is_noted(fetch: str, client: Client) -> None:
    assert any("adapter_config.json" in note for note in client.ask("org/both", None, fetch)["notes"])


def test_a_hostile_index_makes_the_client_ask_for_nothing_else(hub: FakeHub, client: Client) -> None:
    hub.forget()
    client.ask("org/climber")
    assert not any("secret" in path for _, path in hub.requests)


def test_a_transfer_that_breaks_off_leaves_no_file_that_looks_whole(hub: FakeHub, client: Client) -> None:
    hub.cut = True
    try:
        assert client.ask("org/cut")["slug"] == "hub-unreachable"
    finally:
        hub.cut = False
    assert set(llama()) == set(client.ask("org/cut")["tensors"])


def test_offline_uses_the_cache_and_reports_what_it_lacks(hub: FakeHub, client: Client, home: Path) -> None:
    cached = [client.ask(ref) for ref in ("org/single", "org/sharded", "org/named")]
    hub.forget()
    with Client(hub, home, HF_HUB_OFFLINE="1") as offline:
        assert cached == [offline.ask(ref) for ref in ("org/single", "org/sharded", "org/named")]
        missing = offline.ask("org/none")
    assert missing["slug"] == "hub-unreachable"
    assert "HF_HUB_OFFLINE" in missing["cure"]
    assert hub.requests == []


def test_an_unreachable_hub_is_reported(hub: FakeHub, tmp_path: Path) -> None:
    with Client(hub, tmp_path, HF_ENDPOINT="http://127.0.0.1:9") as client:
        answer = client.ask("org/single")
    assert answer["slug"] == "hub-unreachable"
    assert answer["message"].isprintable()
