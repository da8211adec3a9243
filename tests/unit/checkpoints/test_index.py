"""A shard index names files inside its own folder, and nothing else."""

from pathlib import Path

import pytest
from files import llama, numbers, save, write_index
from safetensors.torch import save_file

from deltarank.checkpoints import open_checkpoint
from deltarank.errors import HeaderError
from refusals import refused


def slug_of(folder: Path) -> str:
    with pytest.raises(HeaderError) as caught:
        open_checkpoint(folder)
    assert caught.value.message.isprintable()
    return caught.value.slug


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = save(tmp_path, llama(), shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with refused("missing-shard", HeaderError, match="model-00002-of-00003"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    "shard",
    ["../secret.safetensors", "/etc/x.safetensors", "a/../../x.safetensors", "./x.safetensors", "a//x.safetensors"],
)
def test_a_file_outside_the_folder_is_refused_even_if_it_exists(shard: str, tmp_path: Path) -> None:
    save_file({"a": numbers(2, 2)}, tmp_path / "secret.safetensors")
    assert slug_of(write_index(tmp_path / "model", {"a": shard}).parent) == "outside-folder"


@pytest.mark.parametrize(
    "shard",
    [
        "..\\secret.safetensors",
        "C:\\x.safetensors",
        "c:x.safetensors",
        "a\nb.safetensors",
        "a\0.safetensors",
        "config.json",
        "",
    ],
)
def test_an_invalid_file_name_is_refused(shard: str, tmp_path: Path) -> None:
    assert slug_of(write_index(tmp_path, {"a": shard}).parent) in ("bad-index", "outside-folder")


def test_a_shard_in_a_subfolder_is_read(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    save_file({"a": numbers(2, 2)}, tmp_path / "below" / "x.safetensors")
    write_index(tmp_path, {"a": "below/x.safetensors"})
    with open_checkpoint(tmp_path) as checkpoint:
        assert list(checkpoint.reference.files) == ["below/x.safetensors"]


@pytest.mark.parametrize(
    "text",
    [
        "", "null", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"a": 1}}',
        '{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', "[" * 200_000, '{"weight_map":' * 50_000,
        '{"weight_map": {"a": ' + "9" * 5000 + "}}",
    ],
)  # fmt: skip
def test_a_broken_index_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    assert slug_of(tmp_path) == "bad-index"


def test_a_huge_index_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "model.safetensors.index.json").open("wb") as file:
        file.truncate(2**35)
    assert slug_of(tmp_path) == "bad-index"


def test_the_index_decides_between_two_shards(tmp_path: Path) -> None:
    save_file({"a": numbers(2, 2)}, tmp_path / "x.safetensors")
    save_file({"a": numbers(3, 3), "b": numbers(1, 1)}, tmp_path / "y.safetensors")
    write_index(tmp_path, {"a": "x.safetensors", "b": "y.safetensors"})
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.tensors["a"].shape == (2, 2)
    write_index(tmp_path, {"c": "x.safetensors", "b": "y.safetensors"})
    assert slug_of(tmp_path) == "bad-index"


def test_a_tensor_that_no_shard_holds_is_noted(tmp_path: Path) -> None:
    save_file({"a": numbers(2, 2)}, tmp_path / "x.safetensors")
    write_index(tmp_path, {"a": "x.safetensors", "gone": "x.safetensors"})
    with open_checkpoint(tmp_path) as checkpoint:
        assert "`gone`" in checkpoint.notes[0]
