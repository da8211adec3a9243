"""The header of a safetensors file, parsed as untrusted input.

A file is: 8 bytes (the length of the header, little endian), the header (JSON), the numbers. Nothing is allocated
because the header says so, before this is checked:

- the length must not exceed the format's limit or the end of the file; this is checked before the header is read;
- the JSON is parsed one entry at a time, so nested junk cannot grow in memory;
- the tensors must cover the rest of the file exactly: no overlap, no gap, nothing past the end, and each as many
  bytes as its shape and dtype say.

What the safetensors library refuses is refused here, too. Unknown dtypes are accepted but not read: the pairing reports
them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from typing import Any, NoReturn

from deltarank.checkpoints.escape import dimensions, quoted
from deltarank.checkpoints.file_contents import refuse_other_content
from deltarank.checkpoints.file_errors import refuse_file
from deltarank.checkpoints.formats.storage import StorageFormat
from deltarank.checkpoints.source import Source

MAX_HEADER = 100_000_000
"""The format's own limit, in bytes."""

MAX_SIDES = 16
LENGTH_BYTES = 8

TYPICAL_HEADER_BYTES = 256 << 10
"""The beginning of a file that holds nearly every header: two thousand tensors."""

BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E4M3": 8, "F8_E4M3FNUZ": 8, "F8_E5M2": 8, "F8_E5M2FNUZ": 8, "F8_E8M0": 8,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
}  # fmt: skip
"""Bits per number, by the format's name of the dtype."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A checked entry of a header.

    dtype            the format's name: "BF16"
    file             a key of `Source.files`
    start            byte offset of its first number in the file
    nbytes           its size in bytes
    storage          the quantised format that it is decoded from when read; None if it is plain
    stored_ratio     bytes in the files for each byte of `nbytes`
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    file: str
    start: int
    nbytes: int
    storage: StorageFormat | None = None
    stored_ratio: float = 1.0

    @property
    def entries(self) -> int:
        return math.prod(self.shape)


def read_header(source: Source, file: str) -> bytes:
    """The JSON part of a safetensors file; its length is checked before it is read.

    Raises:
        HeaderError: the length exceeds the limit or the file, or no JSON object begins there.
        CheckpointError: the file cannot be read.
    """
    size = source.files[file]
    if size < LENGTH_BYTES + 2:
        refuse_other_content(source, file)
        refuse_file(file, f"{size} bytes are too few for a safetensors file")
    start = bytearray(LENGTH_BYTES + 1)
    source.read_into(file, 0, memoryview(start))
    length = int.from_bytes(start[:LENGTH_BYTES], "little")
    if length > MAX_HEADER or start[LENGTH_BYTES:] != b"{":
        refuse_other_content(source, file)
    _check_length(file, length, size)
    if start[LENGTH_BYTES:] != b"{":
        refuse_file(file, "it has no header where one should begin, so it is not a safetensors file")
    header = bytearray(length)
    source.read_into(file, LENGTH_BYTES, memoryview(header))
    return bytes(header)


def _check_length(file: str, length: int, size: int) -> None:
    if length > MAX_HEADER:
        refuse_file(file, f"it claims a header of {length:,} bytes, but the format allows at most {MAX_HEADER:,}")
    if LENGTH_BYTES + length > size:
        problem = f"it claims a header of {length:,} bytes, but the file has only {size:,}"
        refuse_file(file, f"{problem}: it is truncated, or not safetensors", slug="truncated")


def parse_header(header: bytes, *, file: str, size: int) -> dict[str, TensorInfo]:
    """The tensors of a header, in its order; `size` is that of the whole file in bytes.

    Raises:
        HeaderError: the header violates the format, or does not fit the file.
    """
    try:
        text = header.decode("utf-8")
    except UnicodeDecodeError:
        refuse_file(file, "its header is not UTF-8 text")
    tensors: dict[str, TensorInfo] = {}
    first = LENGTH_BYTES + len(header)
    try:
        for name, fields in _HeaderParser(text).entries():
            if name in tensors:
                refuse_file(file, f"its header names {quoted(name)} twice")
            tensors[name] = _checked_entry(name, fields, file=file, first=first)
    except _SyntaxError as error:
        refuse_file(file, f"its header has a syntax error at byte {error.position:,}: {error.reason}")
    _check_layout(list(tensors.values()), file=file, first=first, size=size)
    return tensors


class _SyntaxError(Exception):
    """The header is not written as the format demands."""

    def __init__(self, position: int, reason: str) -> None:
        super().__init__(reason)
        self.position = position
        self.reason = reason


_SPACE = re.compile(r"[ \t\n\r]*")
# A tensor's entry holds no braces, and 4,096 characters are many times those of eight sides of twenty digits.
_ENTRY = re.compile(r"\{[^{}]{0,4096}\}")
_DECODER = json.JSONDecoder(object_pairs_hook=lambda pairs: pairs)

Fields = list[tuple[str, Any]]


class _HeaderParser:
    """Parses the outer object one entry at a time: memory stays at the size of the text, whatever is nested in it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0

    def entries(self) -> Iterator[tuple[str, Fields]]:
        for name in self._keys():
            if name == "__metadata__":
                for _ in self._keys():  # text to text: checked and dropped
                    self._string()
            else:
                yield name, self._entry()
        if self._peek():
            self._fail("unexpected text after its end")

    def _keys(self) -> Iterator[str]:
        """The keys of an object. The caller parses each value before it asks for the next key."""
        self._expect("{")
        has_more = self._peek() != "}"
        while has_more:
            key = self._string()
            self._expect(":")
            yield key
            has_more = self._peek() == ","
            if has_more:
                self._expect(",")
        self._expect("}")

    def _peek(self) -> str:
        space = _SPACE.match(self.text, self.position)
        self.position = space.end() if space else self.position
        return self.text[self.position : self.position + 1]

    def _expect(self, character: str) -> None:
        if self._peek() != character:
            self._fail(f"expected {character}")
        self.position += 1

    def _string(self) -> str:
        if self._peek() != '"':
            self._fail("expected a string")
        value = self._decode()
        if not isinstance(value, str) or not _is_encodable(value):
            self._fail("a string that is not text")
        return value

    def _entry(self) -> Fields:
        self._peek()
        if not _ENTRY.match(self.text, self.position):
            self._fail("expected the dtype, shape and offsets of a tensor")
        fields: Fields = self._decode()
        return fields

    def _decode(self) -> Any:
        try:
            value, self.position = _DECODER.raw_decode(self.text, self.position)
        except (ValueError, RecursionError):
            self._fail("not JSON")
        return value

    def _fail(self, reason: str) -> NoReturn:
        raise _SyntaxError(self.position, reason)


def _is_encodable(value: str) -> bool:
    """JSON can hold half of a surrogate pair; such a string can be neither printed nor written."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _checked_entry(name: str, fields: Fields, *, file: str, first: int) -> TensorInfo:
    """One entry, checked but for its place among the others."""
    entry = dict(fields)
    if len(entry) != len(fields) or not entry.keys() >= {"dtype", "shape", "data_offsets"}:
        refuse_file(file, f"{quoted(name)} does not have exactly one dtype, one shape and one pair of offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or not 0 < len(dtype) <= 32:
        refuse_file(file, f"the dtype of {quoted(name)} is not a short string")
    if not _are_counts(shape) or len(shape) > MAX_SIDES:
        refuse_file(file, f"the shape of {quoted(name)} is not a list of at most {MAX_SIDES} whole numbers")
    # Before a side of 0 hides the overflow: other readers count in 64 bits.
    if max(accumulate(shape, mul), default=1) >= 2**64:
        refuse_file(file, f"{quoted(name)} has {dimensions(shape)} numbers, more than 64 bits can count")
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        refuse_file(file, f"the offsets of {quoted(name)} are not a start and an end")
    info = TensorInfo(name, tuple(shape), dtype, file, first + offsets[0], offsets[1] - offsets[0])
    _check_nbytes(info)
    return info


def _are_counts(value: object) -> bool:
    return isinstance(value, list) and all(type(x) is int and 0 <= x < 2**63 for x in value)


def _check_nbytes(info: TensorInfo) -> None:
    bits = BITS.get(info.dtype)
    if bits is not None and info.entries * bits != info.nbytes * 8:
        expected = -(-info.entries * bits // 8)
        refuse_file(
            info.file,
            f"{quoted(info.name)} contains {dimensions(info.shape)} numbers of type {info.dtype}, which take "
            f"{expected:,} bytes, but its header says {info.nbytes:,}",
        )


def _check_layout(tensors: Sequence[TensorInfo], *, file: str, first: int, size: int) -> None:
    """From the end of the header to the end of the file, each tensor begins where the one before it ends."""
    position = first
    for info in sorted(tensors, key=lambda t: (t.start, t.nbytes)):
        end = info.start + info.nbytes
        if end > size:
            problem = f"{quoted(info.name)} ends at byte {end:,}, but the file at {size:,}: it is truncated"
            refuse_file(file, problem, slug="truncated")
        if info.start != position:
            problem = "overlaps another tensor" if info.start < position else "has a gap before it"
            refuse_file(file, f"{quoted(info.name)} {problem}")
        position = end
    if position != size:
        refuse_file(file, f"{size - position:,} bytes at its end belong to no tensor")
