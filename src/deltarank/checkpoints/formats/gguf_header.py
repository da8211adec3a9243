"""The header of a GGUF file (llama.cpp), parsed as untrusted input.

A file is: "GGUF", a version, two counts, key-value pairs, tensor descriptions, and the data, which begins at the next
multiple of the alignment. Nothing is allocated because a count says so, and long texts and arrays are not kept.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from deltarank.checkpoints.escape import quoted
from deltarank.checkpoints.file_contents import refuse_other_content
from deltarank.checkpoints.file_errors import refuse_file
from deltarank.checkpoints.formats.safetensors_header import MAX_HEADER
from deltarank.checkpoints.source import Source

MAGIC = b"GGUF"
MAX_KEPT_TEXT = 65_536
"""Bytes. Longer texts, such as chat templates, are skipped."""

_WINDOW = 1 << 20
_VERSIONS = (2, 3)
_MAX_SIDES = 4
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9


@dataclass(frozen=True)
class GgufTensor:
    """One tensor: shape in torch's order (GGUF's reversed), number of its ggml type, byte offset in the file."""

    name: str
    shape: tuple[int, ...]
    ggml_type: int
    start: int


@dataclass(frozen=True)
class GgufHeader:
    """`metadata` holds numbers and short texts by key, without arrays."""

    metadata: Mapping[str, Any]
    tensors: tuple[GgufTensor, ...]


def read_gguf(source: Source, file: str) -> GgufHeader:
    """Raises:
    HeaderError: not a GGUF file, of an unknown version, truncated, or with a header of more than 100 MB.
    """
    parser = _HeaderParser(source, file)
    if source.files[file] < len(MAGIC) or parser.take(len(MAGIC)) != MAGIC:
        refuse_other_content(source, file)
        parser.refuse("it does not begin as a GGUF file")
    version, tensor_count, pair_count = parser.number("I"), parser.number("Q"), parser.number("Q")
    if version not in _VERSIONS:
        parser.refuse(f"its version is {version}; supported are {' and '.join(map(str, _VERSIONS))}")
    metadata: dict[str, Any] = {}
    for _ in range(pair_count):
        key = parser.text()
        value = parser.value(parser.number("I"))
        if value is not None:
            metadata[key] = value
    tensors = [parser.tensor() for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 0 < alignment <= 1 << 20:
        parser.refuse("its alignment is not a plausible number of bytes")
    first = -(-parser.position // alignment) * alignment
    if len({tensor.name for tensor in tensors}) != len(tensors):
        parser.refuse("it names a tensor twice")
    return GgufHeader(metadata, tuple(replace(tensor, start=first + tensor.start) for tensor in tensors))


class _HeaderParser:
    """Parses the header through a window of the file."""

    def __init__(self, source: Source, file: str) -> None:
        self._source = source
        self._file = file
        self._size = source.files[file]
        self._window = b""
        self._window_start = 0
        self.position = 0

    def take(self, length: int) -> bytes:
        self._check(length)
        if self.position + length > self._window_start + len(self._window):
            window = bytearray(min(max(length, _WINDOW), self._size - self.position))
            self._source.read_into(self._file, self.position, memoryview(window))
            self._window, self._window_start = bytes(window), self.position
        first = self.position - self._window_start
        self.position += length
        return self._window[first : first + length]

    def _check(self, length: int) -> None:
        if self.position + length > self._size:
            self.refuse("it is truncated inside its header", slug="truncated")
        if self.position + length > MAX_HEADER:
            self.refuse(f"its header has more than {MAX_HEADER:,} bytes")

    def _skip(self, length: int) -> None:
        self._check(length)
        self.position += length
        if self.position > self._window_start + len(self._window):
            self._window, self._window_start = b"", self.position

    def number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def text(self) -> str:
        length = self.number("Q")
        if length > MAX_KEPT_TEXT:
            self.refuse("a name in its header is too long")
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError:
            self.refuse("a name in its header is not UTF-8 text")

    def value(self, kind: int, depth: int = 0) -> Any:
        """A number or a short text; None for what is skipped."""
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _TEXT:
            length = self.number("Q")
            if length > MAX_KEPT_TEXT:
                self._skip(length)
                return None
            return self.take(length).decode("utf-8", "replace")
        if kind != _ARRAY or depth > 2:
            self.refuse("a value in its header has an unknown type")
        self._skip_array(depth)
        return None

    def _skip_array(self, depth: int) -> None:
        kind, length = self.number("I"), self.number("Q")
        if kind in _SCALARS:
            self._skip(length * struct.calcsize(f"<{_SCALARS[kind]}"))
            return
        for _ in range(length):
            if kind == _TEXT:
                self._skip(self.number("Q"))
            else:
                self.value(kind, depth + 1)

    def tensor(self) -> GgufTensor:
        """A description, whose `start` is relative to the beginning of the data."""
        name, sides = self.text(), self.number("I")
        if not 0 < sides <= _MAX_SIDES:
            self.refuse(f"{quoted(name)} has {sides} dimensions")
        shape = tuple(self.number("Q") for _ in range(sides))
        if any(side >= 2**40 for side in shape) or math.prod(shape) >= 2**48:
            self.refuse(f"the shape of {quoted(name)} is implausibly large")
        return GgufTensor(name, shape[::-1], self.number("I"), self.number("Q"))

    def refuse(self, problem: str, *, slug: str = "bad-header") -> NoReturn:
        refuse_file(self._file, problem, slug=slug)
