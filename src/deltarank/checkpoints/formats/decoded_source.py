"""A checkpoint in a quantised format, seen as one of plain float32: numbers are worked out for the rows asked for.

Every tensor that has to be worked out gets a place in a file that is not there, behind the file of its first part, in
the order in which the parts lie on disk. Whoever reads by position finds plain numbers. Only the rows that a read
covers are decoded, a million numbers at a time, so memory stays where it is for plain files.
"""

from __future__ import annotations

import bisect
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from deltarank.checkpoints.formats.safetensors_header import TensorInfo
from deltarank.checkpoints.formats.storage import Storage
from deltarank.checkpoints.source import Source

STORED = {
    "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
}  # fmt: skip
"""Types of parts, by the format's words. F8_E8M0 is read as bytes: it holds exponents and nothing else."""

FLOAT = 4
STEP = 1 << 20
"""Numbers that are decoded at a time."""

SMALL = 4 << 20
"""Bytes of a part that is read whole and kept, because every row of its matrix needs some of it."""

MOST_KEPT = 8 * SMALL

MOST_LARGE = 6
"""Large parts that are kept, for two matrices at a time: some formats need all of a part for any row of the matrix."""


class Parts:
    """The stored parts of tensors, as torch tensors. Small ones are kept for the next rows."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._kept: OrderedDict[str, Tensor] = OrderedDict()
        self._large: OrderedDict[tuple[str, int], Tensor] = OrderedDict()
        self._held = 0
        self._lock = threading.Lock()

    def rows(self, info: TensorInfo, columns: int, first: int, last: int) -> Tensor:
        """Rows of a part seen as (whatever, columns)."""
        if info.nbytes <= SMALL:
            return self.whole(info).view(-1, columns)[first:last]
        size = _dtype(info).itemsize
        return self._read(info, first * columns * size, (last - first) * columns * size).view(-1, columns)

    def whole(self, info: TensorInfo) -> Tensor:
        """A part in its shape."""
        with self._lock:
            kept = self._kept.pop(info.name, None)
            if kept is not None:
                self._kept[info.name] = kept
                return kept
        found = self._read(info, 0, info.nbytes).view(info.shape)
        with self._lock:
            if info.name not in self._kept:  # two threads may have read it
                self._held += found.nbytes
            self._kept[info.name] = found
            while self._held > MOST_KEPT and len(self._kept) > 1:
                self._held -= self._kept.popitem(last=False)[1].nbytes
        return found

    def slab(self, info: TensorInfo, number: int, slabs: int) -> Tensor:
        """One of so many equal slabs of a part, flat; the last few are kept."""
        if slabs == 1 and info.nbytes <= SMALL:
            return self.whole(info).view(-1)
        size = info.nbytes // slabs
        with self._lock:
            kept = self._large.pop((info.name, number), None)
        found = self._read(info, number * size, size) if kept is None else kept
        with self._lock:
            self._large[info.name, number] = found
            while len(self._large) > MOST_LARGE:
                self._large.popitem(last=False)
        return found

    def raw(self, info: TensorInfo, start: int, length: int) -> Tensor:
        """Bytes of a part, for formats whose types torch does not know."""
        found = torch.empty(length, dtype=torch.uint8)
        if length:
            self._source.read_into(info.file, info.start + start, found.numpy().data)
        return found

    def prefetch(self, infos: Iterable[TensorInfo]) -> None:
        for info in infos:
            self._source.prefetch(info.file, info.start, info.nbytes)

    def _read(self, info: TensorInfo, start: int, length: int) -> Tensor:
        raw = torch.empty(length, dtype=torch.uint8)
        if length:
            self._source.read_into(info.file, info.start + start, raw.numpy().data)
        return raw.view(_dtype(info))


def _dtype(info: TensorInfo) -> torch.dtype:
    return STORED.get(info.dtype, torch.uint8)


class Decoder(Protocol):
    """One tensor that has to be worked out.

    rows are those of the tensor seen as (all sides but the last, the last side).
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def storage(self) -> Storage: ...

    @property
    def parts(self) -> Sequence[TensorInfo]:
        """The stored tensors that it is made of, the largest first."""

    def decode(self, parts: Parts, first: int, last: int) -> Tensor:
        """Rows first to last, float32 (last - first, columns)."""


@dataclass(frozen=True, slots=True)
class _Place:
    start: int
    name: str
    decoder: Decoder
    rows: int
    columns: int

    @property
    def nbytes(self) -> int:
        return self.rows * self.columns * FLOAT

    @property
    def density(self) -> float:
        """Bytes stored for each byte that is decoded; where the first part holds several tensors, their share of it."""
        first, *rest = self.decoder.parts
        own = first.nbytes * min(self.rows * self.columns / max(first.entries, 1), 1.0)
        return (own + sum(part.nbytes for part in rest)) / max(self.nbytes, 1)


class DecodedSource:
    """A source that holds what another one holds, and decoded tensors beside it.

    tensors          the decoded ones, by name, as plain float32 of files that only this source knows
    """

    def __init__(self, inner: Source, decoders: Mapping[str, Decoder]) -> None:
        self._inner = inner
        self._parts = Parts(inner)
        self._places: dict[str, list[_Place]] = {}
        for name, decoder in sorted(decoders.items(), key=_position):
            self._add(name, decoder)
        self._starts = {file: [place.start for place in places] for file, places in self._places.items()}
        self.tensors = {
            place.name: TensorInfo(
                place.name,
                place.decoder.shape,
                "F32",
                file,
                place.start,
                place.nbytes,
                place.decoder.storage,
                place.density,
            )
            for file, places in self._places.items()
            for place in places
        }

    def _add(self, name: str, decoder: Decoder) -> None:
        places = self._places.setdefault(f"{decoder.parts[0].file} (decoded)", [])
        start = places[-1].start + places[-1].nbytes if places else 0
        columns = decoder.shape[-1] if decoder.shape else 1
        rows = 1
        for side in decoder.shape[:-1]:
            rows *= side
        places.append(_Place(start, name, decoder, rows, columns))

    @property
    def files(self) -> Mapping[str, int]:
        """Those that are there."""
        return self._inner.files

    def read_into(self, file: str, start: int, buffer: memoryview) -> None:
        if file not in self._places:
            self._inner.read_into(file, start, buffer)
            return
        out = torch.frombuffer(buffer, dtype=torch.uint8) if buffer.nbytes else torch.empty(0, dtype=torch.uint8)
        done = 0
        for place, first, last in self._spans(file, start, buffer.nbytes):
            row = place.columns * FLOAT
            values = place.decoder.decode(self._parts, first, last).contiguous().view(-1).view(torch.uint8)
            skip = max(start + done - (place.start + first * row), 0)
            taken = min(len(values) - skip, buffer.nbytes - done)
            out[done : done + taken] = values[skip : skip + taken]
            done += taken

    def _spans(self, file: str, start: int, length: int) -> Iterator[tuple[_Place, int, int]]:
        """(tensor, first row, last row) of all that these bytes touch, in pieces that memory can bear."""
        end = start + length
        at = max(bisect.bisect_right(self._starts[file], start) - 1, 0)
        for place in self._places[file][at:]:
            if place.start >= end:
                return
            row = place.columns * FLOAT
            if not row:
                continue
            first = max(start - place.start, 0) // row
            last = min(-(-(end - place.start) // row), place.rows)
            step = max(1, STEP // place.columns)
            for each in range(first, last, step):
                yield place, each, min(each + step, last)

    def prefetch(self, file: str, start: int, length: int) -> None:
        if file not in self._places:
            self._inner.prefetch(file, start, length)
            return
        for place, first, last in self._whole_spans(file, start, length):
            for part in place.decoder.parts:
                self._inner.prefetch(part.file, *_share(part, first, last, place.rows))

    def _whole_spans(self, file: str, start: int, length: int) -> Iterable[tuple[_Place, int, int]]:
        spans: dict[str, tuple[_Place, int, int]] = {}
        for place, first, last in self._spans(file, start, length):
            spans[place.name] = (place, spans[place.name][1] if place.name in spans else first, last)
        return spans.values()

    def identity(self, file: str) -> str:
        """Parts may come from several files, so a decoded file is like no other."""
        return f"decoded {id(self)} {file}" if file in self._places else self._inner.identity(file)

    def fingerprint(self, file: str) -> str:
        return self._inner.fingerprint(file.removesuffix(" (decoded)") if file in self._places else file)

    def interrupt(self) -> None:
        self._inner.interrupt()

    def close(self) -> None:
        self._inner.close()


def _position(item: tuple[str, Decoder]) -> tuple[str, int, str]:
    first = item[1].parts[0]
    return (first.file, first.start, item[0])


def _share(part: TensorInfo, first: int, last: int, rows: int) -> tuple[int, int]:
    """Which bytes of a part some rows take; small parts are read whole."""
    if part.nbytes <= SMALL or not rows:
        return part.start, part.nbytes
    begin, end = part.nbytes * first // rows, -(-part.nbytes * last // rows)
    return part.start + begin, end - begin
