"""Byte ranges fetched before they are read: several at a time, in the order announced, in bounded memory.

What is announced (`prefetch`) is cut into blocks; neighbours are joined, so that many small tensors are one request.
Each block is dropped once it was read. A reader never waits for room: what it asks for and nobody has begun to fetch is
fetched at once, whatever is held.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from deltarank.checkpoints.hub.retry import GaveUpError

Fetch = Callable[[str, int, memoryview], None]
"""Fills the view with the bytes of a file from a position on, or raises."""

BLOCK = 8 << 20
"""Bytes of one request at most: large beside a round trip, small beside the budget."""

BUDGET = 64 << 20
"""Bytes that one checkpoint holds ahead of its readers."""

FETCHERS = 6

GAP_SHARE = 50
"""Bytes that nobody asked for may lie between neighbours of one request, up to a fiftieth of it."""

STALE = 512
"""Reads of other blocks after which one that nobody reads makes room."""


@dataclass
class _Block:
    """Bytes `start` to `end` of a file, on their way or here. `left` counts what was announced and is not yet read."""

    file: str
    start: int
    end: int
    left: int
    born: int
    data: memoryview = field(init=False, repr=False)
    error: BaseException | None = None
    is_ready: bool = False

    def covers(self, position: int) -> bool:
        return self.start <= position < self.end


@dataclass
class _Want:
    """Announced, and not yet begun."""

    file: str
    start: int
    end: int


class ReadAhead:
    """Reads through `fetch`, which is called from several threads at once."""

    def __init__(self, fetch: Fetch, *, budget: int = BUDGET, block: int = BLOCK, fetchers: int = FETCHERS) -> None:
        self._fetch = fetch
        self._budget = budget
        self._block = block
        self._fetchers = fetchers
        self._changed = threading.Condition()
        self._wanted: deque[_Want] = deque()
        self._blocks: dict[str, list[_Block]] = {}
        self._held = 0
        self._reads = 0
        self._threads: list[threading.Thread] = []
        self._closed = False
        self.most_held = 0
        """Bytes, the most that were ever held."""

    def prefetch(self, file: str, start: int, length: int) -> None:
        """Announces bytes; what is here, on its way or announced already is not announced twice."""
        with self._changed:
            if self._closed:
                return
            fresh = self._uncovered(file, start, start + length)
            self._wanted.extend(_Want(file, first, last) for first, last in fresh)
            if fresh:
                self._begin()
                self._changed.notify_all()

    def read_into(self, file: str, start: int, view: memoryview) -> None:
        """Fills the view. Raises what `fetch` raised for these bytes."""
        done = 0
        while done < view.nbytes:
            block, is_ours = self._block_at(file, start + done, view.nbytes - done)
            if is_ours:  # in a thread: a program that stops cannot be held up by a silent line
                threading.Thread(target=self._fill, args=(block,), name="deltarank-now", daemon=True).start()
            done += self._copy(block, start + done, view[done:])

    def drop(self, file: str) -> None:
        """Forgets what is held of a file and was fetched."""
        with self._changed:
            for block in list(self._blocks.get(file, ())):
                if block.is_ready:
                    self._remove(block)
            self._changed.notify_all()

    def stop(self) -> None:
        """No reader waits any longer: each fails at once. Fetches that are going on end by themselves, unread."""
        with self._changed:
            self._closed = True
            self._wanted.clear()
            self._changed.notify_all()

    def close(self) -> None:
        """Stops, and lets go of everything."""
        self.stop()
        deadline = time.monotonic() + 0.25
        for thread in self._threads:
            thread.join(timeout=max(deadline - time.monotonic(), 0.0))
        with self._changed:
            self._blocks.clear()
            self._held = 0

    def _uncovered(self, file: str, start: int, end: int) -> list[tuple[int, int]]:
        taken = [(b.start, b.end) for b in self._blocks.get(file, ())]
        taken += [(w.start, w.end) for w in self._wanted if w.file == file]
        fresh = []
        for first, last in sorted(taken):
            if first >= end:
                break
            if start < first:
                fresh.append((start, first))
            start = max(start, last)
        return [*fresh, (start, end)] if start < end else fresh

    def _begin(self) -> None:
        while len(self._threads) < self._fetchers:
            # Daemons: a program that ends does not wait for the network.
            thread = threading.Thread(target=self._work, name="deltarank-ahead", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _work(self) -> None:
        while True:
            with self._changed:
                block = self._next()
                while block is None and not self._closed:
                    self._changed.wait()
                    block = self._next()
                if block is None or self._closed:
                    return
            self._fill(block)

    def _next(self) -> _Block | None:
        """The next block to fetch, if there is one and room for it."""
        if self._closed or not self._wanted or not self._has_room():
            return None
        return self._gathered(self._wanted.popleft())

    def _gathered(self, first: _Want) -> _Block:
        """A block that begins here, and goes on with what follows in its file as far as it was announced."""
        start = end = first.start
        asked = 0
        want: _Want | None = first
        while want is not None:
            last = min(want.end, start + self._block)
            asked += last - want.start
            end = last
            if last < want.end:
                self._wanted.appendleft(_Want(want.file, last, want.end))
                break
            want = self._neighbour(first.file, start, end)
        return self._add(first.file, start, end, asked)

    def _neighbour(self, file: str, start: int, end: int) -> _Want | None:
        """What goes on where this block ends, out of the queue: matrices are not always read in the files' order."""
        for want in self._wanted:
            if want.file == file and self._joins(want, start, end):
                self._wanted.remove(want)
                return want
        return None

    def _joins(self, want: _Want, start: int, end: int) -> bool:
        """Whether it goes into a block that has `start` to `end` so far."""
        return 0 <= want.start - end <= (end - start) // GAP_SHARE and want.start < start + self._block

    def _has_room(self) -> bool:
        """What nobody came for makes room."""
        every = [block for blocks in self._blocks.values() for block in blocks]
        stale = [block for block in every if block.is_ready and self._reads - block.born > STALE]
        while stale and self._held + self._block > self._budget:
            self._remove(stale.pop(0))
        return self._held + self._block <= self._budget or self._held == 0

    def _block_at(self, file: str, position: int, most: int) -> tuple[_Block, bool]:
        """The block that holds this byte, and whether nobody fetches it yet."""
        with self._changed:
            self._reads += 1
            near = [b for b in self._blocks.get(file, ()) if b.end > position]
            for block in near:
                if block.covers(position):
                    return block, False
            for want in self._wanted:
                if want.file == file and want.start <= position < want.end:
                    return self._taken(want, position), True
            ends = [b.start for b in near] + [w.start for w in self._wanted if w.file == file and w.start > position]
            end = min([position + min(most, self._block), *ends])
            return self._add(file, position, end, end - position), True

    def _taken(self, want: _Want, position: int) -> _Block:
        """Out of the queue, a reader being before its fetchers."""
        self._wanted.remove(want)
        if want.start < position:
            self._wanted.appendleft(_Want(want.file, want.start, position))
        return self._gathered(_Want(want.file, position, want.end))

    def _add(self, file: str, start: int, end: int, asked: int) -> _Block:
        block = _Block(file, start, end, asked, self._reads)
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
        # A reader raises it, in its own thread.
        except BaseException as error:
            block.error = error
        with self._changed:
            block.is_ready = True
            block.born = self._reads
            self._changed.notify_all()

    def _copy(self, block: _Block, position: int, view: memoryview) -> int:
        """As much as the block has of what the view wants; a block that was read goes."""
        with self._changed:
            while not block.is_ready:
                if self._closed:
                    raise GaveUpError("it was stopped")
                self._changed.wait()
            if block.error is not None:
                self._remove(block)
                self._changed.notify_all()
                raise block.error
        number = min(view.nbytes, block.end - position)
        first = position - block.start
        view[:number] = block.data[first : first + number]
        with self._changed:
            block.left -= number
            if block.left <= 0:
                self._remove(block)
                self._changed.notify_all()
        return number
