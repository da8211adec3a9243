"""A header is believed only where the file bears it out."""

import json
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from files import BITS, entry, layout, llama, raw, save
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize

from deltarank.checkpoints import open_checkpoint
from deltarank.checkpoints.formats.safetensors_header import MAX_HEADER, parse_header
from deltarank.errors import HeaderError

F32 = {"a": ("F32", (2, 3)), "b": ("BF16", (5,)), "c": ("F16", ())}


def parse(content: bytes, size: int | None = None) -> dict[str, Any]:
    length = int.from_bytes(content[:8], "little")
    return parse_header(content[8 : 8 + length], file="x.safetensors", size=len(content) if size is None else size)


def library_accepts(content: bytes) -> bool:
    try:
        deserialize(content)
    except SafetensorError:
        return False
    return True


def refusal(content: bytes, tmp_path: Path) -> HeaderError:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(HeaderError) as caught:
        open_checkpoint(path)
    return caught.value


def test_names_shapes_dtypes_and_offsets_are_those_of_the_file(tmp_path: Path) -> None:
    tensors = llama()
    folder = save(tmp_path, tensors)
    content = (folder / "model.safetensors").read_bytes()
    with open_checkpoint(folder) as checkpoint:
        assert {name: tuple(t.shape) for name, t in tensors.items()} == {
            name: info.shape for name, info in checkpoint.tensors.items()
        }
        for name, info in checkpoint.tensors.items():
            stored = content[info.start : info.start + info.nbytes]
            assert bytes(tensors[name].view(torch.uint8).numpy().tobytes()) == stored


def test_every_type_of_the_format_has_its_size(tmp_path: Path) -> None:
    header, size = layout({dtype: (dtype, (8, 4)) for dtype in BITS})
    assert {dtype: bits * 4 for dtype, bits in BITS.items()} == {
        name: info.nbytes for name, info in parse(raw(header, size)).items()
    }


def test_sizes_agree_with_the_library_for_every_type_that_it_knows() -> None:
    unknown = []
    for dtype in BITS:
        header, size = layout({"a": (dtype, (8, 4))})
        if not library_accepts(raw(header, size)):
            unknown.append(dtype)
    assert unknown == []


def test_an_unknown_dtype_is_accepted_unread() -> None:
    assert parse(raw({"a": entry("Q3", (7,), 0, 5)}, 5))["a"].dtype == "Q3"


def test_metadata_and_spaces_are_skipped() -> None:
    text = (
        b' {"__metadata__" : {"format":"pt","k":"{[\\"]}"} ,\n"a":{"data_offsets":[0,4],"shape":[1],"dtype":"F32"} }  '
    )
    assert list(parse(raw(text[1:], 4))) == ["a"]


@pytest.mark.parametrize(
    ("header", "data"),
    [
        pytest.param({"a": entry("F32", (2,), 0, 4)}, 4, id="shape larger than its bytes"),
        pytest.param({"a": entry("F32", (2**40, 2**40), 0, 8)}, 8, id="a shape of 2^80 numbers"),
        pytest.param({"a": entry("F32", (0, 2**62), 0, 4)}, 4, id="nothing, in four bytes"),
        pytest.param({"a": entry("F32", (1,), 0, 4), "b": entry("F32", (1,), 0, 4)}, 4, id="overlap"),
        pytest.param({"a": entry("F32", (1,), 4, 8)}, 8, id="hole"),
        pytest.param({"a": entry("F32", (1,), 0, 4)}, 8, id="bytes at the end"),
        pytest.param({"a": entry("F32", (2,), 0, 8)}, 4, id="past the end"),
        pytest.param({"a": entry("F32", (-1,), 0, 4)}, 4, id="negative side"),
        pytest.param({"a": entry("F32", (1,), 4, 0)}, 4, id="end before start"),
        pytest.param({"a": entry("F32", (1,), -4, 0)}, 4, id="negative offset"),
        pytest.param({"a": entry("F32", (1.0,), 0, 4)}, 4, id="a fraction as a side"),
        pytest.param({"a": entry("F32", (True,), 0, 4)}, 4, id="true as a side"),
        pytest.param({"a": entry("F32", (1,) * 17, 0, 4)}, 4, id="seventeen sides"),
        pytest.param({"a": entry("F32" * 20, (1,), 0, 4)}, 4, id="a long type"),
        pytest.param({"a": {"dtype": "F32", "shape": [1]}}, 4, id="no offsets"),
        pytest.param({"a": {"dtype": "F32", "shape": 1, "data_offsets": [0, 4]}}, 4, id="shape is no list"),
        pytest.param({"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}, 4, id="type is no word"),
        pytest.param({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 4]}}, 4, id="three offsets"),
        pytest.param({"a": {"dtype": {"x": 1}, "shape": [1], "data_offsets": [0, 4]}}, 4, id="an object in an entry"),
        pytest.param({"a": [1]}, 4, id="an entry that is a list"),
        pytest.param({"__metadata__": {"a": [1]}}, 0, id="metadata that is not text"),
        pytest.param(b'{"a":1', 0, id="cut JSON"),
        pytest.param(b"{", 0, id="an open brace"),
        pytest.param(b'{"a\xff":1}', 0, id="not UTF-8"),
        pytest.param(b'{"\\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', 4, id="half a surrogate pair"),
        pytest.param(b"{} {}", 0, id="two objects"),
        pytest.param(b'{"a":{"shape":[' + b"9" * 5000 + b'],"dtype":"F32","data_offsets":[0,4]}}', 4, id="long number"),
        pytest.param(b'{"a":{"shape":[' + b"9" * 4000 + b'],"dtype":"F32","data_offsets":[0,4]}}', 4, id="number"),
        pytest.param(b'{"a":' + b"[" * 100_000 + b"}", 0, id="deep nesting"),
        pytest.param(b"[]", 0, id="a list"),
        pytest.param(
            b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
            8,
            id="one name twice",
        ),
        pytest.param(
            b'{"a":{"dtype":"F32","dtype":"F16","shape":[1],"data_offsets":[0,4]}}', 4, id="one field twice"
        ),
    ],
)  # fmt: skip
def test_an_inconsistent_header_is_refused(header: object, data: int, tmp_path: Path) -> None:
    error = refusal(raw(header, data), tmp_path)
    assert error.slug in ("bad-header", "truncated")
    assert "`x.safetensors`" in error.message
    assert len(error.message) < 600


def test_the_message_names_the_folder_of_the_file(tmp_path: Path) -> None:
    folder = save(tmp_path / "the base", llama())
    (folder / "model.safetensors").write_bytes(b"junk")
    with pytest.raises(HeaderError, match=r"the base`: `model\.safetensors` is text"):
        open_checkpoint(folder)


def test_a_truncated_file_is_called_truncated(tmp_path: Path) -> None:
    content = (save(tmp_path / "whole", llama()) / "model.safetensors").read_bytes()
    for end in (len(content) - 1, len(content) // 2, 100, 20):
        assert refusal(content[:end], tmp_path).slug == "truncated"
    for end in (9, 8, 4):
        assert refusal(content[:end], tmp_path).slug in ("bad-header", "truncated")
    assert refusal(b"", tmp_path).slug == "empty-file"


@contextmanager
def little_memory(most: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("length", [MAX_HEADER + 1, 2**31, 2**63, 2**64 - 1])
def test_a_long_header_is_refused_by_its_length_alone(length: int, tmp_path: Path) -> None:
    """The file is sparse, so a reader that believed the length would find that many bytes."""
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.write(length.to_bytes(8, "little") + b"{")
        file.truncate(min(length + 8, 2**33))
    with little_memory(1_000_000), pytest.raises(HeaderError, match=f"{length:,}"):
        open_checkpoint(path)


def test_a_hundred_megabytes_of_junk_are_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.write(MAX_HEADER.to_bytes(8, "little"))
        file.truncate(MAX_HEADER + 8)
    with little_memory(1_000_000), pytest.raises(HeaderError, match="not a safetensors file"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    "junk",
    [
        b'{"a":' + b"[[],[]," * 1_000_000,
        b'{"a":{"dtype":' + b'{"":' * 1_000_000,
        b'{"__metadata__":{"a":' + b"[[],[]," * 1_000_000,
        b'{"a":{"dtype":"F32","shape":[' + b"1," * 3_000_000,
        b'{"a":' + b"1" * 5_000_000,
    ],
)  # fmt: skip
def test_nested_junk_does_not_grow_in_memory(junk: bytes) -> None:
    """Taken by a JSON parser whole, seven bytes of empty lists become over a hundred bytes of objects."""
    with little_memory(2 * len(junk) + 1_000_000), pytest.raises(HeaderError):
        parse_header(junk, file="x", size=2**40)


def test_hostile_names_stay_on_one_line_and_short(tmp_path: Path) -> None:
    name = "a\n\x1b[31mError: run `rm`\u202e" + "x" * 10_000
    message = refusal(raw({name: entry("F32", (2,), 0, 4)}, 4), tmp_path).message
    assert message.isprintable()
    assert "\\n\\x1b[31m" in message
    assert "`rm" not in message
    assert len(message) < 500


# --- Fuzz; tests/fuzz has more: edited headers, against the library.

TRUE_SHAPES = st.dictionaries(
    st.text(max_size=12), st.tuples(st.sampled_from(sorted(BITS)), st.lists(st.integers(0, 4), max_size=4)), max_size=5
).map(lambda d: {n: (t, [8, *s] if BITS[t] < 8 else s) for n, (t, s) in d.items() if n != "__metadata__"})


@settings(max_examples=150, deadline=None)
@given(TRUE_SHAPES, st.integers(0, 9))
def test_fuzz_true_headers_are_read(shapes: dict[str, tuple[str, list[int]]], padding: int) -> None:
    header, size = layout(shapes)
    found = parse(raw(json.dumps(header).encode() + b" " * padding, size))
    expected = {name: (dtype, tuple(shape)) for name, (dtype, shape) in shapes.items()}
    assert expected == {name: (info.dtype, info.shape) for name, info in found.items()}


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200))
def test_fuzz_any_bytes_give_a_clear_error(tail: bytes) -> None:
    with pytest.raises(HeaderError):
        parse_header(b"{" + tail, file="x", size=10_000)
