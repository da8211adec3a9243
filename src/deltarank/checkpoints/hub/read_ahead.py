"""Byte ranges fetched before they are read: several at a time, in the order announced, in bounded memory.

Prefetched ranges are split into blocks, and adjacent ranges are joined, so that many small tensors take one request. A
block is dropped once it was read. A reader never waits for memory: bytes that nobody fetches yet are fetched at once,
however much is buffered.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from deltarank.checkpoints.hub.backoff import TransferError

BLOCK_BYTES = 8 << 20
"""The largest request: large compared with a round trip, small compared with the buffer."""

MAX_BUFFERED_BYTES = 64 << 20
"""Bytes that one checkpoint buffers ahead of its readers."""

FETCH_THREADS = 6

MAX_GAP_SHARE = 50
"""A request may join ranges with a gap between them of up to a fiftieth of its size."""

STALE_READS = 512
"""A fetched block may be dropped after so many reads of other blocks."""


@dataclass
class _Block:
    """Bytes `start` to `end` of a file, being fetched or fetched. `unread` counts bytes announced and not yet read."""

    file: str
    start: int
    end: int
    unread: int
    last_used: int
    data: memoryview = field(init=False, repr=False)
    error: BaseException | None = None
    is_ready: bool = False


@dataclass
class _Range:
    """Bytes of a file that were announced; nobody fetches them yet."""

    file: str
    start: int
    end: int


class ReadAhead:
    """Reads through `fetch(file, start, view)`, which fills the view and is called from several threads at once."""

    def __init__(
        self,
        fetch: Callable[[str, int, memoryview], None],
        *,
        budget: int = MAX_BUFFERED_BYTES,
        block: int = BLOCK_BYTES,
        fetchers: int = FETCH_THREADS,
    ) -> None:
        self._fetch = fetch
        self._budget = budget
        self._block = block
        self._fetchers = fetchers
        self._changed = threading.Condition()
        self._queue: deque[_Range] = deque()
        self._blocks: dict[str, list[_Block]] = {}
        self._held = 0
        self._reads = 0
        self._threads: list[threading.Thread] = []
        self._closed = False
        self.most_held = 0
        """The most bytes that were ever buffered."""

    def prefetch(self, file: str, start: int, length: int) -> None:
        """Announces bytes; those that are buffered or were announced already are not announced again."""
        with self._changed:
            if self._closed:
                return
            fresh = self._uncovered(file, start, start + length)
            self._queue.extend(_Range(file, first, last) for first, last in fresh)
            if fresh:
                self._start_threads()
                self._changed.notify_all()

    def read_into(self, file: str, start: int, view: memoryview) -> None:
        """Fills the view. Raises what `fetch` raised for these bytes."""
        done = 0
        while done < view.nbytes:
            block, is_new = self._block_at(file, start + done, view.nbytes - done)
            if is_new:  # in a thread: a silent connection must not block a program that stops
                threading.Thread(target=self._fill, args=(block,), name="deltarank-now", daemon=True).start()
            done += self._copy(block, start + done, view[done:])

    def drop(self, file: str) -> None:
        """Drops the fetched blocks of a file."""
        with self._changed:
            for block in list(self._blocks.get(file, ())):
                if block.is_ready:
                    self._remove(block)
            self._changed.notify_all()

    def stop(self) -> None:
        """Readers that wait fail at once. Fetches in progress end by themselves, unread."""
        with self._changed:
            self._closed = True
            self._queue.clear()
            self._changed.notify_all()

    def close(self) -> None:
        """Stops, and releases all buffers."""
        self.stop()
        deadline = time.monotonic() + 0.25
        for thread in self._threads:
            thread.join(timeout=max(deadline - time.monotonic(), 0.0))
        with self._changed:
            self._blocks.clear()
            self._held = 0

    def _uncovered(self, file: str, start: int, end: int) -> list[tuple[int, int]]:
        covered = [(block.start, block.end) for block in self._blocks.get(file, ())]
        covered += [(queued.start, queued.end) for queued in self._queue if queued.file == file]
        fresh = []
        for first, last in sorted(covered):
            if first >= end:
                break
            if start < first:
                fresh.append((start, first))
            start = max(start, last)
        return [*fresh, (start, end)] if start < end else fresh

    def _start_threads(self) -> None:
        while len(self._threads) < self._fetchers:
            # Daemons: a program that ends does not wait for the network.
            thread = threading.Thread(target=self._work, name="deltarank-ahead", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _work(self) -> None:
        while True:
            with self._changed:
                block = self._next_block()
                while block is None and not self._closed:
                    self._changed.wait()
                    block = self._next_block()
                if block is None or self._closed:
                    return
            self._fill(block)

    def _next_block(self) -> _Block | None:
        """The next block to fetch, if there is one and it fits."""
        if self._closed or not self._queue or not self._fits_in_buffer():
            return None
        return self._join(self._queue.popleft())

    def _join(self, first: _Range) -> _Block:
        """A block that begins with this range, and continues with queued ranges that follow it in its file."""
        start = end = first.start
        announced = 0
        part: _Range | None = first
        while part is not None:
            last = min(part.end, start + self._block)
            announced += last - part.start
            end = last
            if last < part.end:
                self._queue.appendleft(_Range(part.file, last, part.end))
                break
            part = self._pop_adjacent(first.file, start, end)
        return self._add(first.file, start, end, announced)

    def _pop_adjacent(self, file: str, start: int, end: int) -> _Range | None:
        """The queued range that continues a block from `start` to `end`; matrices are not always read in file order."""
        for queued in self._queue:
            is_near = 0 <= queued.start - end <= (end - start) // MAX_GAP_SHARE
            if queued.file == file and is_near and queued.start < start + self._block:
                self._queue.remove(queued)
                return queued
        return None

    def _fits_in_buffer(self) -> bool:
        """Drops stale blocks if memory is short."""
        blocks = [block for blocks in self._blocks.values() for block in blocks]
        stale = [block for block in blocks if block.is_ready and self._reads - block.last_used > STALE_READS]
        while stale and self._held + self._block > self._budget:
            self._remove(stale.pop(0))
        return self._held + self._block <= self._budget or self._held == 0

    def _block_at(self, file: str, position: int, length: int) -> tuple[_Block, bool]:
        """The block that holds this byte, and whether it is new and so not fetched yet."""
        with self._changed:
            self._reads += 1
            behind = [block for block in self._blocks.get(file, ()) if block.end > position]
            for block in behind:
                if block.start <= position:
                    return block, False
            for queued in self._queue:
                if queued.file == file and queued.start <= position < queued.end:
                    return self._take_from_queue(queued, position), True
            starts = [block.start for block in behind]
            starts += [queued.start for queued in self._queue if queued.file == file and queued.start > position]
            end = min([position + min(length, self._block), *starts])
            return self._add(file, position, end, end - position), True

    def _take_from_queue(self, queued: _Range, position: int) -> _Block:
        """A block from `position` on, for a reader that is faster than the fetch threads."""
        self._queue.remove(queued)
        if queued.start < position:
            self._queue.appendleft(_Range(queued.file, queued.start, position))
        return self._join(_Range(queued.file, position, queued.end))

    def _add(self, file: str, start: int, end: int, announced: int) -> _Block:
        block = _Block(file, start, end, announced, self._reads)
        block.data = memoryview(bytearray(end - start))
        self._blocks.setdefault(file, []).append(block)
        self._held += end - start
        self.most_held = max(self.most_held, self._held)
        return block

    def _remove(self, block: _Block) -> None:
        blocks = self._blocks.get(block.file, [])
        if any(block is other for other in blocks):
            self._blocks[block.file] = [other for other in blocks if other is not block]
            self._held -= block.end - block.start

    def _fill(self, block: _Block) -> None:
        try:
            self._fetch(block.file, block.start, block.data)
        # A reader raises it again, in its own thread.
        except BaseException as error:
            block.error = error
        with self._changed:
            block.is_ready = True
            block.last_used = self._reads
            self._changed.notify_all()

    def _copy(self, block: _Block, position: int, view: memoryview) -> int:
        """Copies what the block has of the view's bytes, and drops the block once all of it was read."""
        with self._changed:
            while not block.is_ready:
                if self._closed:
                    raise TransferError("it was stopped")
                self._changed.wait()
            if block.error is not None:
                self._remove(block)
                self._changed.notify_all()
                raise block.error
        length = min(view.nbytes, block.end - position)
        first = position - block.start
        view[:length] = block.data[first : first + length]
        with self._changed:
            block.unread -= length
            if block.unread <= 0:
                self._remove(block)
                self._changed.notify_all()
        return length
