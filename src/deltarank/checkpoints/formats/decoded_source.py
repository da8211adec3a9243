"""A quantised checkpoint as a source of plain float32, decoded for the rows that are read.

Every decoded tensor gets an offset in a virtual file, named after the file of its first part, in the order of the parts
on disk. A read by position finds plain numbers there. Only the rows that it covers are decoded, a million numbers at a
time, so memory use is that of plain files.
"""

from __future__ import annotations

import bisect
import math
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deltarank.checkpoints.formats.safetensors_header import TensorInfo
from deltarank.checkpoints.formats.storage import StorageFormat
from deltarank.checkpoints.source import Source

_PART_DTYPES = {
    "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "U32": torch.int32, "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
}  # fmt: skip
"""Dtypes of parts, by their safetensors names. U32 is read as words of bits, whose sign means nothing, and F8_E8M0 as
bytes: it holds only exponents."""

FLOAT_BYTES = 4
STEP = 1 << 20
"""Numbers that are decoded at a time."""

SMALL_PART_BYTES = 4 << 20
"""Parts up to this size are read whole and cached, because every row of the matrix needs some of them."""

MAX_CACHED_BYTES = 8 * SMALL_PART_BYTES

MAX_CACHED_SLABS = 6
"""Enough for two matrices at a time: some formats need all of a part for any row of the matrix."""


class PartReader:
    """Reads the stored parts of tensors as torch tensors, and caches the small ones."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._cache: OrderedDict[str, Tensor] = OrderedDict()
        self._cached_bytes = 0
        self._slabs: OrderedDict[tuple[str, int], Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def rows(self, info: TensorInfo, columns: int, first: int, last: int) -> Tensor:
        """Rows of a part viewed as (any, columns)."""
        if info.nbytes <= SMALL_PART_BYTES:
            return self.whole(info).view(-1, columns)[first:last]
        row_bytes = columns * _dtype(info).itemsize
        return self._read(info, first * row_bytes, (last - first) * row_bytes).view(-1, columns)

    def whole(self, info: TensorInfo) -> Tensor:
        """A part in its shape."""
        with self._lock:
            if info.name in self._cache:
                self._cache.move_to_end(info.name)
                return self._cache[info.name]
        part = self._read(info, 0, info.nbytes).view(info.shape)
        with self._lock:
            if info.name not in self._cache:  # two threads may have read it
                self._cached_bytes += part.nbytes
            self._cache[info.name] = part
            while self._cached_bytes > MAX_CACHED_BYTES and len(self._cache) > 1:
                self._cached_bytes -= self._cache.popitem(last=False)[1].nbytes
        return part

    def slab(self, info: TensorInfo, index: int, slabs: int) -> Tensor:
        """One of `slabs` equal slabs of a part, flat; the last few are cached."""
        if slabs == 1 and info.nbytes <= SMALL_PART_BYTES:
            return self.whole(info).view(-1)
        size = info.nbytes // slabs
        with self._lock:
            slab = self._slabs.pop((info.name, index), None)
        if slab is None:
            slab = self._read(info, index * size, size)
        with self._lock:
            self._slabs[info.name, index] = slab
            while len(self._slabs) > MAX_CACHED_SLABS:
                self._slabs.popitem(last=False)
        return slab

    def raw(self, info: TensorInfo, start: int, length: int) -> Tensor:
        """Bytes of a part, for formats whose dtypes torch does not have."""
        raw = torch.empty(length, dtype=torch.uint8)
        if length:
            self._source.read_into(info.file, info.start + start, raw.numpy().data)
        return raw

    def prefetch(self, infos: Iterable[TensorInfo]) -> None:
        for info in infos:
            self._source.prefetch(info.file, info.start, info.nbytes)

    def _read(self, info: TensorInfo, start: int, length: int) -> Tensor:
        return self.raw(info, start, length).view(_dtype(info))


def _dtype(info: TensorInfo) -> torch.dtype:
    return _PART_DTYPES.get(info.dtype, torch.uint8)


class Decoder(ABC):
    """One decoded tensor: a dataclass whose fields are the stored tensors that it is made of, the largest first.

    Its rows are those of its view as (all sides but the last, the last side).
    """

    shape: tuple[int, ...]
    storage: StorageFormat

    @property
    def parts(self) -> tuple[TensorInfo, ...]:
        """The stored tensors."""
        return tuple(value for value in vars(self).values() if isinstance(value, TensorInfo))

    @abstractmethod
    def decode(self, parts: PartReader, first: int, last: int) -> Tensor:
        """Rows first to last, float32 (last - first, columns)."""


@dataclass(frozen=True, slots=True)
class _Placement:
    """Where a decoded tensor lies in its virtual file."""

    start: int
    name: str
    decoder: Decoder
    rows: int
    columns: int

    @property
    def row_bytes(self) -> int:
        return self.columns * FLOAT_BYTES

    @property
    def nbytes(self) -> int:
        return self.rows * self.row_bytes

    @property
    def stored_ratio(self) -> float:
        """Bytes stored for each decoded byte; if the first part holds several tensors, their share of it counts."""
        first, *rest = self.decoder.parts
        own = first.nbytes * min(self.rows * self.columns / max(first.entries, 1), 1.0)
        return (own + sum(part.nbytes for part in rest)) / max(self.nbytes, 1)

    def info(self, file: str) -> TensorInfo:
        decoder = self.decoder
        return TensorInfo(
            self.name, decoder.shape, "F32", file, self.start, self.nbytes, decoder.storage, self.stored_ratio
        )


_SUFFIX = " (decoded)"

_Span = tuple[_Placement, int, int]
"""A decoded tensor, its first row and its last."""


class DecodedSource:
    """The files of another source, and decoded tensors beside them.

    tensors          the decoded ones by name: plain float32 in virtual files
    """

    def __init__(self, inner: Source, decoders: Mapping[str, Decoder]) -> None:
        self._inner = inner
        self._parts = PartReader(inner)
        self._placements: dict[str, list[_Placement]] = {}
        for name, decoder in sorted(decoders.items(), key=_position):
            self._add(name, decoder)
        self._starts = {file: [each.start for each in placed] for file, placed in self._placements.items()}
        self.tensors = {each.name: each.info(file) for file, placed in self._placements.items() for each in placed}

    def _add(self, name: str, decoder: Decoder) -> None:
        placed = self._placements.setdefault(decoder.parts[0].file + _SUFFIX, [])
        start = placed[-1].start + placed[-1].nbytes if placed else 0
        columns = decoder.shape[-1] if decoder.shape else 1
        placed.append(_Placement(start, name, decoder, math.prod(decoder.shape[:-1]), columns))

    def __reduce__(self) -> tuple[Any, ...]:
        """Without what is cached."""
        decoders = {each.name: each.decoder for placed in self._placements.values() for each in placed}
        return DecodedSource, (self._inner, decoders)

    @property
    def files(self) -> Mapping[str, int]:
        """The real files."""
        return self._inner.files

    def read_into(self, file: str, start: int, buffer: memoryview) -> None:
        if file not in self._placements:
            self._inner.read_into(file, start, buffer)
            return
        out = torch.frombuffer(buffer, dtype=torch.uint8) if buffer.nbytes else torch.empty(0, dtype=torch.uint8)
        done = 0
        for placed, first, last in self._spans(file, start, buffer.nbytes):
            values = placed.decoder.decode(self._parts, first, last).contiguous().view(-1).view(torch.uint8)
            skip = max(start + done - (placed.start + first * placed.row_bytes), 0)
            length = min(len(values) - skip, buffer.nbytes - done)
            out[done : done + length] = values[skip : skip + length]
            done += length

    def _spans(self, file: str, start: int, length: int) -> Iterator[_Span]:
        """All rows that these bytes touch, about a million numbers at a time."""
        end = start + length
        index = max(bisect.bisect_right(self._starts[file], start) - 1, 0)
        for placed in self._placements[file][index:]:
            if placed.start >= end:
                return
            if not placed.row_bytes:
                continue
            first = max(start - placed.start, 0) // placed.row_bytes
            last = min(-(-(end - placed.start) // placed.row_bytes), placed.rows)
            step = max(1, STEP // placed.columns)
            for row in range(first, last, step):
                yield placed, row, min(row + step, last)

    def prefetch(self, file: str, start: int, length: int) -> None:
        if file not in self._placements:
            self._inner.prefetch(file, start, length)
            return
        rows: dict[str, _Span] = {}
        for placed, first, last in self._spans(file, start, length):
            rows[placed.name] = (placed, rows[placed.name][1] if placed.name in rows else first, last)
        for placed, first, last in rows.values():
            for part in placed.decoder.parts:
                self._inner.prefetch(part.file, *_byte_range(part, first, last, placed.rows))

    def identity(self, file: str) -> str:
        """Parts may come from several files, so a virtual file equals no other."""
        return f"decoded {id(self)} {file}" if file in self._placements else self._inner.identity(file)

    def fingerprint(self, file: str) -> str:
        return self._inner.fingerprint(file.removesuffix(_SUFFIX) if file in self._placements else file)

    def interrupt(self) -> None:
        self._inner.interrupt()

    def close(self) -> None:
        self._inner.close()


def _position(item: tuple[str, Decoder]) -> tuple[str, int, str]:
    first = item[1].parts[0]
    return (first.file, first.start, item[0])


def _byte_range(part: TensorInfo, first: int, last: int, rows: int) -> tuple[int, int]:
    """Start and length of what some of the rows need of a part; small parts are read whole."""
    if part.nbytes <= SMALL_PART_BYTES or not rows:
        return part.start, part.nbytes
    begin, end = part.nbytes * first // rows, -(-part.nbytes * last // rows)
    return part.start + begin, end - begin
