"""A source whose bytes are read once for several readers: they stay in memory from the first reader to the last."""

from __future__ import annotations

import bisect
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from deltarank.checkpoints.pieces import Piece
from deltarank.checkpoints.source import Source

SPARE_BYTES = 64_000_000
"""Bytes that were read without being announced are kept up to this size, since other readers may want them, too."""


@dataclass(eq=False)
class _Block:
    """Bytes `start` to `end` of a file, that so many readers are still to read."""

    start: int
    end: int
    readers: int
    data: memoryview | None = None
    was_prefetched: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)


class SharedSource:
    """The files of another source. Readers announce the pieces that they read, and say when they have.

    bytes_read  what was read of the other source so far
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._blocks: dict[str, list[_Block]] = {}
        self._starts: dict[str, list[int]] = {}
        self._spare: dict[tuple[str, int, int], bytes] = {}
        self._spare_bytes = 0
        self._lock = threading.Lock()
        self.bytes_read = 0

    def __reduce__(self) -> tuple[Any, ...]:
        """Without what is announced here: another process has readers of its own."""
        return SharedSource, (self._source,)

    @property
    def files(self) -> Mapping[str, int]:
        return self._source.files

    def expect(self, pieces: Iterable[Piece]) -> None:
        """Announces readers, one for each piece, in place of those announced before."""
        ranges: dict[str, list[tuple[int, int]]] = {}
        for piece in pieces:
            ranges.setdefault(piece.file, []).append((piece.start, piece.start + piece.nbytes))
        self._spare.clear()
        self._spare_bytes = 0
        self._blocks = {file: _merged(sorted(found)) for file, found in ranges.items()}
        self._starts = {file: [block.start for block in blocks] for file, blocks in self._blocks.items()}

    def count_elsewhere(self, nbytes: int) -> None:
        """Counts what another process read of the other source."""
        with self._lock:
            self.bytes_read += nbytes

    def done(self, piece: Piece) -> None:
        """A reader of this piece has ended; after the last one its bytes are dropped."""
        block = self._block(piece.file, piece.start, piece.nbytes)
        if block is not None:
            with block.lock:
                block.readers -= 1
                if block.readers <= 0:
                    block.data = None

    def read_into(self, file: str, start: int, buffer: memoryview) -> None:
        flat = buffer.cast("B") if buffer.nbytes else buffer
        block = self._block(file, start, flat.nbytes)
        if block is None or block.readers <= 0:
            self._read_spare(file, start, flat)
            return
        with block.lock:
            if block.data is None:
                data = torch.empty(block.end - block.start, dtype=torch.uint8).numpy().data
                self._read(file, block.start, data)
                block.data = data
            data = block.data
        flat[:] = data[start - block.start : start - block.start + flat.nbytes]

    def _block(self, file: str, start: int, length: int) -> _Block | None:
        """The announced block that holds all of these bytes."""
        index = bisect.bisect_right(self._starts.get(file, ()), start) - 1
        if index < 0:
            return None
        block = self._blocks[file][index]
        return block if start + length <= block.end else None

    def _read(self, file: str, start: int, buffer: memoryview) -> None:
        self._source.read_into(file, start, buffer)
        with self._lock:
            self.bytes_read += buffer.nbytes

    def _read_spare(self, file: str, start: int, buffer: memoryview) -> None:
        """Bytes that nobody announced."""
        key = file, start, buffer.nbytes
        found = self._spare.get(key)
        if found is not None:
            buffer[:] = found
            return
        self._read(file, start, buffer)
        with self._lock:
            if self._spare_bytes + buffer.nbytes <= SPARE_BYTES:
                self._spare[key] = bytes(buffer)
                self._spare_bytes += buffer.nbytes

    def prefetch(self, file: str, start: int, length: int) -> None:
        """Announced bytes are prefetched once: the system may have dropped them when the last reader comes."""
        block = self._block(file, start, length)
        if block is None:
            self._source.prefetch(file, start, length)
        elif not block.was_prefetched:
            block.was_prefetched = True
            self._source.prefetch(file, block.start, block.end - block.start)

    def identity(self, file: str) -> str:
        return self._source.identity(file)

    def fingerprint(self, file: str) -> str:
        return self._source.fingerprint(file)

    def interrupt(self) -> None:
        self._source.interrupt()

    def close(self) -> None:
        """Closes the files of the other source."""
        self._source.close()


def _merged(ranges: Iterable[tuple[int, int]]) -> list[_Block]:
    """Sorted ranges as blocks, one for those that overlap."""
    blocks: list[_Block] = []
    for start, end in ranges:
        if blocks and start < blocks[-1].end:
            blocks[-1].end = max(blocks[-1].end, end)
            blocks[-1].readers += 1
        else:
            blocks.append(_Block(start, end, 1))
    return blocks
