"""A shard index names files inside its own folder, and nothing else."""

import json
from pathlib import Path

import pytest
from files import llama, numbers, save, write_index
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from deltarank.checkpoints import open_checkpoint
from deltarank.checkpoints.formats.shard_index import MAX_INDEX, parse_index
from deltarank.errors import HeaderError


def slug_of(folder: Path) -> str:
    with pytest.raises(HeaderError) as caught:
        open_checkpoint(folder)
    assert caught.value.message.isprintable()
    return caught.value.slug


def test_shards_are_read_as_one(tmp_path: Path) -> None:
    tensors = llama()
    with open_checkpoint(save(tmp_path, tensors, shards=3)) as checkpoint:
        assert set(tensors) == set(checkpoint.tensors)
        assert len(checkpoint.reference.files) == 3


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = save(tmp_path, llama(), shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(HeaderError, match="model-00002-of-00003") as caught:
        open_checkpoint(folder)
    assert caught.value.slug == "missing-shard"


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
def test_a_name_that_is_no_plain_file_name_is_refused(shard: str, tmp_path: Path) -> None:
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
        file.truncate(MAX_INDEX * 100)
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


def parsed(text: str) -> dict[str, str] | HeaderError:
    try:
        return parse_index(text.encode("utf-8", "surrogatepass"), file="index")
    except HeaderError as error:
        return error


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
)
SHARDS = st.one_of(
    st.text(max_size=30),
    st.text(max_size=10).map(lambda s: s + ".safetensors"),
    st.lists(st.sampled_from(["..", ".", "", "a", "b.safetensors", "C:"]), max_size=4).map("/".join),
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.text(max_size=12), SHARDS, min_size=1, max_size=4))
def test_fuzz_an_accepted_shard_lies_inside_the_folder(weight_map: dict[str, str]) -> None:
    owners = parsed(json.dumps({"weight_map": weight_map}))
    if isinstance(owners, HeaderError):
        return
    assert weight_map == owners
    for shard in owners.values():
        path = Path("/folder") / shard
        assert path.resolve().is_relative_to("/folder")
        assert path.parent != path


@settings(max_examples=200, deadline=None)
@given(st.one_of(JSON.map(json.dumps), JSON.map(lambda v: json.dumps({"weight_map": v})), st.text(max_size=60)))
def test_fuzz_any_text_gives_an_answer_or_a_clear_error(text: str) -> None:
    owners = parsed(text)
    if isinstance(owners, HeaderError):
        assert owners.message.isprintable()
        assert len(owners.message) < 500
    else:
        assert json.loads(text)["weight_map"] == owners
