"""The header of a safetensors file, parsed as text from a stranger.

A file is: 8 bytes (the header's length, little endian), the header (JSON), the numbers. The header is believed only
after every claim in it has been checked against the size of the file, and nothing is allocated on its word:

- the length is refused before the header is read, if it is over the format's limit or runs past the end;
- the JSON is taken apart one entry at a time, so that nested junk cannot grow in memory;
- the tensors must cover the rest of the file exactly: no overlap, no hole, nothing past the end, and each as many
  bytes as its shape and type say.

What the safetensors library refuses is refused here too. Types that it does not know are let through, unread:
the pairing names them to the user.
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

from deltarank.checkpoints.escape import dimensions, shown
from deltarank.checkpoints.formats.storage import Storage
from deltarank.checkpoints.source import Source
from deltarank.errors import HeaderError

MAX_HEADER = 100_000_000
"""The format's own limit, in bytes."""

MAX_SIDES = 16
LENGTH = 8

LIKELY_HEADER = 256 << 10
"""Bytes at a file's front that hold nearly every header: two thousand tensors."""

BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E4M3": 8, "F8_E4M3FNUZ": 8, "F8_E5M2": 8, "F8_E5M2FNUZ": 8, "F8_E8M0": 8,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
}  # fmt: skip
"""Bits of one number, by the format's word for its type."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What a header says of a tensor, checked.

    dtype            the format's word: "BF16"
    file             the name of the file, a key of `Source.files`
    start            byte offset of its first number from the start of the file
    nbytes           bytes that it takes
    storage          how it is stored, if that is not plain: the numbers of a decoded tensor are worked out when read
    density          bytes that are stored for each byte of the numbers
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    file: str
    start: int
    nbytes: int
    storage: Storage | None = None
    density: float = 1.0

    @property
    def entries(self) -> int:
        return math.prod(self.shape)


def read_header(source: Source, file: str) -> bytes:
    """The JSON part of a safetensors file, refused by its length before it is read.

    Raises:
        HeaderError: the length is over the limit or past the end of the file, or no JSON object begins there.
        CheckpointError: the file cannot be read.
    """
    size = source.files[file]
    if size < LENGTH + 2:
        _refuse(file, f"{size} bytes are too few for a safetensors file")
    start = bytearray(LENGTH + 1)
    source.read_into(file, 0, memoryview(start))
    length = int.from_bytes(start[:LENGTH], "little")
    _check_length(file, length, size)
    if start[LENGTH:] != b"{":
        _refuse(file, "no header begins where one should, so this is not a safetensors file")
    header = bytearray(length)
    source.read_into(file, LENGTH, memoryview(header))
    return bytes(header)


def _check_length(file: str, length: int, size: int) -> None:
    if length > MAX_HEADER:
        _refuse(file, f"claims a header of {length:,} bytes, and the format allows {MAX_HEADER:,}")
    if LENGTH + length > size:
        _refuse(
            file,
            f"claims a header of {length:,} bytes, and the whole file has {size:,}: cut short, or not safetensors",
            slug="truncated",
        )


def parse_header(header: bytes, *, file: str, size: int) -> dict[str, TensorInfo]:
    """The tensors of a header, in the order of the header.

    `file` names the file in messages; `size` is that of the whole file in bytes.

    Raises:
        HeaderError: the header is not what the format says, or its claims do not fit the file.
    """
    try:
        text = header.decode("utf-8")
    except UnicodeDecodeError:
        _refuse(file, "its header is not text")
    tensors: dict[str, TensorInfo] = {}
    first = LENGTH + len(header)
    try:
        for name, fields in _Scanner(text).entries():
            if name in tensors:
                _refuse(file, f"its header names {shown(name)} twice")
            tensors[name] = _checked(name, fields, file=file, first=first)
    except _Junk as junk:
        _refuse(file, f"its header cannot be understood at byte {junk.position:,}: {junk.reason}")
    _check_layout(list(tensors.values()), file=file, first=first, size=size)
    return tensors


class _Junk(Exception):
    """The header is not written as the format says."""

    def __init__(self, position: int, reason: str) -> None:
        super().__init__(reason)
        self.position = position
        self.reason = reason


_SPACE = re.compile(r"[ \t\n\r]*")
# No tensor's entry holds braces, and eight sides of twenty digits fit many times over.
_ENTRY = re.compile(r"\{[^{}]{0,4096}\}")
_DECODER = json.JSONDecoder(object_pairs_hook=lambda pairs: pairs)

Fields = list[tuple[str, Any]]


class _Scanner:
    """Walks the outer object, an entry at a time: memory stays at the size of the text, whatever is nested in it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0

    def entries(self) -> Iterator[tuple[str, Fields]]:
        self._expect("{")
        more = self._peek() != "}"
        while more:
            name = self._string()
            self._expect(":")
            if name == "__metadata__":
                self._pass_metadata()
            else:
                yield name, self._entry()
            more = self._peek() == ","
            if more:
                self._expect(",")
        self._expect("}")
        if self._peek():
            self._fail("something follows its end")

    def _pass_metadata(self) -> None:
        """Text to text, free for the writer's use: checked and dropped."""
        self._expect("{")
        more = self._peek() != "}"
        while more:
            self._string()
            self._expect(":")
            self._string()
            more = self._peek() == ","
            if more:
                self._expect(",")
        self._expect("}")

    def _peek(self) -> str:
        space = _SPACE.match(self.text, self.position)
        self.position = space.end() if space else self.position
        return self.text[self.position : self.position + 1]

    def _expect(self, character: str) -> None:
        if self._peek() != character:
            self._fail(f"{character} expected")
        self.position += 1

    def _string(self) -> str:
        if self._peek() != '"':
            self._fail("a name in quotes expected")
        value = self._decode()
        if not isinstance(value, str) or not _is_text(value):
            self._fail("a name that is not text")
        return value

    def _entry(self) -> Fields:
        self._peek()
        if not _ENTRY.match(self.text, self.position):
            self._fail("the dtype, shape and offsets of a tensor expected")
        fields: Fields = self._decode()
        return fields

    def _decode(self) -> Any:
        try:
            value, self.position = _DECODER.raw_decode(self.text, self.position)
        except (ValueError, RecursionError):
            self._fail("not JSON")
        return value

    def _fail(self, reason: str) -> NoReturn:
        raise _Junk(self.position, reason)


def _is_text(value: str) -> bool:
    """JSON can spell half of a surrogate pair; such a text can be neither printed nor written."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _checked(name: str, fields: Fields, *, file: str, first: int) -> TensorInfo:
    """One entry, all its claims in order but for its place among the others."""
    known = dict(fields)
    if len(known) != len(fields) or not known.keys() >= {"dtype", "shape", "data_offsets"}:
        _refuse(file, f"{shown(name)} does not have one dtype, one shape and one pair of offsets")
    dtype, shape, offsets = known["dtype"], known["shape"], known["data_offsets"]
    if not isinstance(dtype, str) or not 0 < len(dtype) <= 32:
        _refuse(file, f"the dtype of {shown(name)} is not a word")
    if not _are_counts(shape) or len(shape) > MAX_SIDES:
        _refuse(file, f"the shape of {shown(name)} is not a list of up to {MAX_SIDES} whole numbers")
    if max(accumulate(shape, mul), default=1) >= 2**64:  # before a side of 0 hides it: others count in 64 bits
        _refuse(file, f"{shown(name)} is {dimensions(shape)} numbers, more than can be counted")
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        _refuse(file, f"the offsets of {shown(name)} are not a start and an end")
    info = TensorInfo(name, tuple(shape), dtype, file, first + offsets[0], offsets[1] - offsets[0])
    _check_bytes(info)
    return info


def _are_counts(value: object) -> bool:
    return isinstance(value, list) and all(type(x) is int and 0 <= x < 2**63 for x in value)


def _check_bytes(info: TensorInfo) -> None:
    bits = BITS.get(info.dtype)
    if bits is not None and info.entries * bits != info.nbytes * 8:
        wanted = -(-info.entries * bits // 8)
        _refuse(
            info.file,
            f"{shown(info.name)} is {dimensions(info.shape)} numbers of type {info.dtype}: {wanted:,} bytes, "
            f"and its header gives it {info.nbytes:,}",
        )


def _check_layout(tensors: Sequence[TensorInfo], *, file: str, first: int, size: int) -> None:
    """From the header's end to the file's end, each tensor begins where the one before it ends."""
    place = first
    for info in sorted(tensors, key=lambda t: (t.start, t.nbytes)):
        if info.start + info.nbytes > size:
            _refuse(
                file,
                f"{shown(info.name)} ends at byte {info.start + info.nbytes:,}, and the file at "
                f"{size:,}: it was cut short",
                slug="truncated",
            )
        if info.start != place:
            word = "overlaps another tensor" if info.start < place else "leaves a hole before it"
            _refuse(file, f"{shown(info.name)} {word}")
        place += info.nbytes
    if place != size:
        _refuse(file, f"{size - place:,} bytes at its end belong to no tensor")


def _refuse(file: str, what: str, *, slug: str = "bad-header") -> NoReturn:
    raise HeaderError(
        f"{shown(file)} cannot be trusted: {what}.",
        cure="Download or copy the file again, and compare its size and checksum with those that its publisher states.",
        slug=slug,
    ) from None
