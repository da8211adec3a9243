"""The header of a GGUF file (llama.cpp), read as bytes from a stranger: what it says of itself, and its tensors.

A file is: "GGUF", a version, two counts, pairs of key and value, descriptions of tensors, and from the next multiple of
the alignment on their numbers. Nothing is allocated on the word of a count, and no text is kept that is not asked for.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from deltarank.checkpoints.escape import shown
from deltarank.checkpoints.source import Source
from deltarank.errors import HeaderError

MAGIC = b"GGUF"
MAX_HEADER = 100_000_000
MAX_KEPT = 65_536
"""Bytes of a text that is kept; longer ones, such as chat templates, are passed over."""

_WINDOW = 1 << 20
_VERSIONS = (2, 3)
_MOST_SIDES = 4
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9


@dataclass(frozen=True)
class Stored:
    """One tensor: sides as torch has them (the rows of GGUF come last), the number of its type, its place."""

    name: str
    shape: tuple[int, ...]
    kind: int
    start: int


@dataclass(frozen=True)
class GgufHeader:
    """`about` holds numbers and short texts by key; arrays are left out."""

    about: Mapping[str, Any]
    tensors: tuple[Stored, ...]
    nbytes: int


def read_gguf(source: Source, file: str) -> GgufHeader:
    """Raises:
    HeaderError: it is no GGUF file, of another version, cut short, or longer than 100 MB.
    """
    cursor = _Cursor(source, file)
    if cursor.take(4) != MAGIC:
        cursor.refuse("it does not begin as a GGUF file")
    version, tensors, pairs = cursor.number("I"), cursor.number("Q"), cursor.number("Q")
    if version not in _VERSIONS:
        cursor.refuse(f"it is of version {version}, and {' and '.join(map(str, _VERSIONS))} are read")
    about: dict[str, Any] = {}
    for _ in range(pairs):
        key = cursor.text()
        value = cursor.value(cursor.number("I"))
        if value is not None:
            about[key] = value
    found = [cursor.tensor() for _ in range(tensors)]
    alignment = about.get("general.alignment", 32)
    if type(alignment) is not int or not 0 < alignment <= 1 << 20:
        cursor.refuse("its alignment is no number of bytes")
    first = -(-cursor.at // alignment) * alignment
    placed = tuple(Stored(each.name, each.shape, each.kind, first + each.start) for each in found)
    if len({each.name for each in placed}) != len(placed):
        cursor.refuse("it names a tensor twice")
    return GgufHeader(about, placed, cursor.at)


class _Cursor:
    """Walks through the header, a window of the file at a time."""

    def __init__(self, source: Source, file: str) -> None:
        self._source = source
        self._file = file
        self._size = source.files[file]
        self._window = b""
        self._begin = 0
        self.at = 0

    def take(self, length: int) -> bytes:
        self._check(length)
        if self.at + length > self._begin + len(self._window):
            window = bytearray(min(max(length, _WINDOW), self._size - self.at))
            self._source.read_into(self._file, self.at, memoryview(window))
            self._window, self._begin = bytes(window), self.at
        place = self.at - self._begin
        self.at += length
        return self._window[place : place + length]

    def _check(self, length: int) -> None:
        if self.at + length > self._size:
            self.refuse("it was cut short inside of its header", slug="truncated")
        if self.at + length > MAX_HEADER:
            self.refuse(f"its header has more than {MAX_HEADER:,} bytes")

    def _skip(self, length: int) -> None:
        self._check(length)
        self.at += length
        if self.at > self._begin + len(self._window):
            self._window, self._begin = b"", self.at

    def number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def text(self) -> str:
        length = self.number("Q")
        if length > MAX_KEPT:
            self.refuse("a name in its header is too long")
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError:
            self.refuse("a name in its header is not text")

    def value(self, kind: int, depth: int = 0) -> Any:
        """A number or a short text; None for what is passed over."""
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _TEXT:
            length = self.number("Q")
            if length > MAX_KEPT:
                self._skip(length)
                return None
            return self.take(length).decode("utf-8", "replace")
        if kind != _ARRAY or depth > 2:
            self.refuse("a value in its header is of no kind that GGUF has")
        self._pass_array(depth)
        return None

    def _pass_array(self, depth: int) -> None:
        kind, length = self.number("I"), self.number("Q")
        if kind in _SCALARS:
            self._skip(length * struct.calcsize(f"<{_SCALARS[kind]}"))
            return
        for _ in range(length):
            if kind == _TEXT:
                self._skip(self.number("Q"))
            else:
                self.value(kind, depth + 1)

    def tensor(self) -> Stored:
        name, sides = self.text(), self.number("I")
        if not 0 < sides <= _MOST_SIDES:
            self.refuse(f"{shown(name)} has {sides} sides")
        shape = tuple(self.number("Q") for _ in range(sides))
        if any(side >= 2**40 for side in shape) or math.prod(shape) >= 2**48:
            self.refuse(f"{shown(name)} is larger than anything")
        return Stored(name, shape[::-1], self.number("I"), self.number("Q"))

    def refuse(self, what: str, *, slug: str = "bad-header") -> NoReturn:
        raise HeaderError(
            f"{shown(self._file)} cannot be trusted: {what}.",
            cure="Download or copy the file again, and compare its size and checksum with those that its publisher "
            "states.",
            slug=slug,
        ) from None
