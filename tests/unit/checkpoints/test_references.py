"""Which checkpoint is meant, and which of the files in it are the weights."""

import os
import pickle
from pathlib import Path

import pytest
from files import Program, llama, numbers, save, write_index
from safetensors.torch import save_file

from deltarank.checkpoints import open_checkpoint
from deltarank.checkpoints.references import HubRef, LocalRef, parse_ref
from deltarank.errors import CheckpointError, DeltarankError, UsageError


def refusal(ref: str | Path, revision: str | None = None) -> DeltarankError:
    with pytest.raises(DeltarankError) as caught:
        open_checkpoint(ref, revision=revision)
    assert caught.value.cure
    assert caught.value.message.isprintable()
    return caught.value


@pytest.mark.parametrize(
    ("text", "repo_id", "revision"),
    [
        ("org/name", "org/name", None),
        ("hf://org/name", "org/name", None),
        ("hf:org/name", "org/name", None),
        ("hf://org/name/", "org/name", None),
        ("org/name@v1.0", "org/name", "v1.0"),
        ("hf://org/name@refs/pr/3", "org/name", "refs/pr/3"),
        ("Qwen/Qwen3-30B-A3B_x.y", "Qwen/Qwen3-30B-A3B_x.y", None),
    ],
)
def test_hub_ids(text: str, repo_id: str, revision: str | None) -> None:
    assert HubRef(repo_id, revision) == parse_ref(text)


@pytest.mark.parametrize("host", ["https://huggingface.co", "http://hf.co", "huggingface.co", "https://www.hf.co"])
@pytest.mark.parametrize(
    ("page", "revision"),
    [
        ("", None),
        ("/", None),
        (".git", None),
        ("?library=transformers#usage", None),
        ("/tree/main", "main"),
        ("/tree/refs%2Fpr%2F3/", "refs/pr/3"),
        ("/tree/refs/pr/3", "refs/pr/3"),
        ("/commit/0123abc", "0123abc"),
        ("@v2", "v2"),
    ],
)
def test_the_address_of_a_models_page(host: str, page: str, revision: str | None) -> None:
    assert HubRef("org/na.me-7b", revision) == parse_ref(f"{host}/org/na.me-7b{page}")


def test_the_address_of_a_page_on_a_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example:8080")
    assert HubRef("org/name") == parse_ref("https://mirror.example:8080/org/name")


@pytest.mark.parametrize(
    "page", ["", "org", "datasets/org/name", "org/name/blob/main/x.safetensors", "org/name/tree/v1/sub", "org/name/x"]
)
def test_another_page_of_the_hub_is_refused_by_name(page: str) -> None:
    error = refusal(f"https://huggingface.co/{page}")
    assert error.slug == "bad-reference"
    assert "https://huggingface.co/org/name" in error.cure


def test_a_revision_may_be_given_separately() -> None:
    assert HubRef("org/name", "v2") == parse_ref("org/name", "v2")
    assert HubRef("org/name", "v2") == parse_ref("org/name@v2", "v2")
    with pytest.raises(UsageError):
        parse_ref("org/name@v1", "v2")


def test_local_paths_take_precedence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert LocalRef(Path("org/name"), "org/name") == parse_ref("org/name")
    assert HubRef("org/name") == parse_ref("hf://org/name")


def test_a_dot_is_shown_as_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert str(tmp_path) == parse_ref(".").ref


def test_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    save(tmp_path / "model", llama())
    with open_checkpoint("~/model") as checkpoint:
        assert checkpoint.reference.ref == str(tmp_path / "model")


@pytest.mark.parametrize(
    "ref", ["/no/such/folder", "./none", "../none", "~/none", "a/b/c", "none.safetensors", "org/model.bin", "org/name/"]
)
def test_a_path_that_does_not_exist_is_not_looked_up_on_the_hub(
    ref: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert refusal(ref).slug == "no-such-checkpoint"


def test_a_wrong_path_names_the_nearest_before_the_hub_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "finetune").mkdir(parents=True)

    error = refusal("models/finetun")
    assert error.slug == "no-such-checkpoint"
    assert "'models/finetune'" in error.message
    assert "hf://models/finetun" in error.cure
    assert "'models'" in refusal("./model").message
    assert "'models'" in refusal("modles").message
    assert HubRef("models/finetun", "main") == parse_ref("models/finetun", "main")
    assert HubRef("models/finetun") == parse_ref("hf://models/finetun")


@pytest.mark.parametrize(
    "ref", ["", "  ", "gpt2", "hf://gpt2", "https://x.org/a/b", "a b/c", "a/b@", "x" * 5000, "a\0b", "ä/ö"]
)
def test_what_is_neither_path_nor_id_is_a_usage_error(ref: str) -> None:
    assert refusal(ref).slug == "bad-reference"


def test_a_path_object_is_never_a_hub_id() -> None:
    assert refusal(Path("org/name")).slug == "no-such-checkpoint"


def test_a_folder_has_no_revision(tmp_path: Path) -> None:
    assert refusal(tmp_path, "main").slug == "bad-reference"


def test_a_folder_without_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert refusal(tmp_path).slug == "no-weights"


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "model.ckpt"])
def test_a_pickle_is_refused_and_its_program_is_not_run(name: str, tmp_path: Path) -> None:
    proof = tmp_path / "it ran"
    path = tmp_path / "model" / name
    path.parent.mkdir()
    path.write_bytes(pickle.dumps(Program(proof)))
    error = refusal(path)
    assert error.slug == "pickled-weights"
    assert "save_pretrained" in error.cure
    assert refusal(path.parent).slug in ("pickled-weights", "several-checkpoints")
    assert not proof.exists()


def test_a_pickle_that_calls_itself_safetensors_is_not_run(tmp_path: Path) -> None:
    proof = tmp_path / "it ran"
    path = tmp_path / "model.safetensors"
    path.write_bytes(pickle.dumps(Program(proof)))
    assert refusal(path).slug in ("bad-header", "truncated")
    assert not proof.exists()


def test_an_unsupported_file_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"onnx")
    assert refusal(path).slug == "bad-format"


def test_an_adapter_is_not_a_checkpoint(tmp_path: Path) -> None:
    save_file({"a": numbers(2, 2)}, tmp_path / "adapter_model.safetensors")
    assert refusal(tmp_path).slug == "adapter-not-checkpoint"


def test_several_files_without_an_index(tmp_path: Path) -> None:
    save_file({"a": numbers(2, 2)}, tmp_path / "x.safetensors")
    save_file({"b": numbers(2, 2)}, tmp_path / "y.safetensors")
    assert refusal(tmp_path).slug == "several-checkpoints"
    with open_checkpoint(tmp_path / "y.safetensors") as checkpoint:
        assert list(checkpoint.tensors) == ["b"]


def test_a_single_safetensors_of_any_name_is_read(tmp_path: Path) -> None:
    save_file({"a": numbers(2, 2)}, tmp_path / "weights.safetensors")
    (tmp_path / "below.safetensors").mkdir()
    with open_checkpoint(tmp_path) as checkpoint:
        assert list(checkpoint.reference.files) == ["weights.safetensors"]


def test_an_adapter_beside_the_weights_is_ignored(tmp_path: Path) -> None:
    """As it is on the Hub."""
    for name in ("adapter_model", "weights"):
        save_file({name: numbers(2, 2)}, tmp_path / f"{name}.safetensors")
    with open_checkpoint(tmp_path) as checkpoint:
        assert list(checkpoint.tensors) == ["weights"]


def test_numbered_shards_need_no_index_if_the_set_is_whole(tmp_path: Path) -> None:
    folder = save(tmp_path, llama(), shards=3)
    (folder / "model.safetensors.index.json").unlink()
    with open_checkpoint(folder) as checkpoint:
        assert len(checkpoint.tensors) == len(llama())
    (folder / "model-00001-of-00003.safetensors").unlink()
    assert refusal(folder).slug == "missing-shard"


def test_model_safetensors_comes_before_an_index(tmp_path: Path) -> None:
    """As transformers chooses."""
    save(tmp_path, llama())
    write_index(tmp_path, dict.fromkeys(llama(), "gone.safetensors"))
    with open_checkpoint(tmp_path) as checkpoint:
        assert list(checkpoint.reference.files) == ["model.safetensors"]


def test_an_index_of_another_name_is_found_and_may_be_named(tmp_path: Path) -> None:
    save_file({"a": numbers(2, 2)}, tmp_path / "x.safetensors")
    save_file({"b": numbers(2, 2)}, tmp_path / "y.safetensors")
    index = write_index(tmp_path, {"a": "x.safetensors"}, name="other.safetensors.index.json")
    for ref in (tmp_path, index):
        with open_checkpoint(ref) as checkpoint:
            assert list(checkpoint.tensors) == ["a"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")
    assert refusal(tmp_path).slug == "unreadable"


def test_a_loop_of_links_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to("model.safetensors")
    assert isinstance(refusal(tmp_path), CheckpointError)


@pytest.mark.parametrize("config", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}"])
def test_a_broken_configuration_counts_as_empty(config: bytes, tmp_path: Path) -> None:
    save(tmp_path, llama())
    (tmp_path / "config.json").write_bytes(config)
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.config == {}


def test_the_fingerprint_changes_with_the_file_and_only_then(tmp_path: Path) -> None:
    def fingerprint() -> str:
        with open_checkpoint(tmp_path) as checkpoint:
            return checkpoint.fingerprint

    save(tmp_path, llama())
    first = fingerprint()
    assert first == fingerprint()
    save(tmp_path, llama(seed=1))
    second = fingerprint()
    assert first != second
    os.utime(tmp_path / "model.safetensors", ns=(1, 1))
    assert second != fingerprint()
