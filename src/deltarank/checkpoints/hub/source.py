"""A checkpoint on the Hub as a source: nothing of it is kept on disk."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence

from deltarank.checkpoints.escape import shown
from deltarank.checkpoints.formats.safetensors_header import LENGTH, LIKELY_HEADER
from deltarank.checkpoints.hub.checksums import damaged, matches
from deltarank.checkpoints.hub.http_ranges import Ranged, RemoteFile, Traffic
from deltarank.checkpoints.hub.read_ahead import BUDGET, ReadAhead
from deltarank.checkpoints.hub.retry import GaveUpError
from deltarank.checkpoints.source import Source, unreadable
from deltarank.errors import DeltarankError, JobError

SMALL = LIKELY_HEADER
"""Bytes. A file up to this size comes whole with its header, and is held against its hash."""

MOST_SMALL = 32 << 20
"""Bytes of small files that are kept in memory."""

Open = Callable[[RemoteFile], Ranged]


class HubSource:
    """Files on the Hub by name, read by ranges and ahead of the reader. Small files come whole and stay in memory.

    What fails for good raises a JobError, which ends a run: without the Hub no matrix can be read, and those that are
    finished are kept. Only a file that is not what was listed is a CheckpointError, which costs its matrices.
    """

    def __init__(
        self,
        files: Sequence[RemoteFile],
        open_file: Open,
        *,
        traffic: Traffic,
        stop: Callable[[], None],
        translate: Callable[[Exception], DeltarankError],
    ) -> None:
        self._listed = {file.name: file for file in files}
        self._sizes = {file.name: file.size for file in files}
        self._opened = {file.name: open_file(file) for file in files}
        self._small = _small(files)
        self._whole: dict[str, bytes] = {}
        self._lock = threading.Lock()
        self._stop = stop
        self._translate = translate
        self._ahead = ReadAhead(self._fetch)
        self.traffic = traffic

    @property
    def files(self) -> Mapping[str, int]:
        return self._sizes

    def identity(self, file: str) -> str:
        return f"blob {self._listed[file].digest}"

    def fingerprint(self, file: str) -> str:
        return self.identity(file)

    def prefetch(self, file: str, start: int, length: int) -> None:
        if file in self._small:
            start, length = 0, 0 if file in self._whole else self._listed[file].size
        self._ahead.prefetch(file, start, max(min(length, self._listed[file].size - start), 0))

    def read_into(self, file: str, start: int, buffer: memoryview) -> None:
        flat = buffer.cast("B") if buffer.nbytes else buffer
        if start + flat.nbytes > self._listed[file].size:
            raise unreadable(file, "it became shorter since its header was read")
        if file in self._small:
            flat[:] = self._small_file(file)[start : start + flat.nbytes]
            return
        self._ahead.read_into(file, start, flat)
        if start == LENGTH and len(self._listed) * LIKELY_HEADER > BUDGET // 2:
            self._ahead.drop(file)  # what came with the headers of many files is read too late to be kept

    def interrupt(self) -> None:
        self._stop()
        self._ahead.stop()

    def close(self) -> None:
        self._stop()
        self._ahead.close()
        self._whole.clear()

    def _small_file(self, file: str) -> bytes:
        """The whole file, held against its hash; a wrong one is fetched once more."""
        with self._lock:
            for last in (False, True):
                if file in self._whole:
                    break
                content = bytearray(self._listed[file].size)
                self._ahead.read_into(file, 0, memoryview(content))
                if matches(content, self._listed[file].digest):
                    self._whole[file] = bytes(content)
                elif last:
                    raise damaged(file)
            return self._whole[file]

    def _fetch(self, file: str, start: int, view: memoryview) -> None:
        try:
            self._opened[file].read(start, view)
        except DeltarankError:
            raise
        except GaveUpError as error:
            raise lost(file, str(error)) from None
        # The client library's errors have no common root.
        except Exception as error:
            known = self._translate(error)
            raise JobError(known.message, cure=known.cure, slug=known.slug) from error


class PooledSource:
    """Several sources as one, by file: some files of a checkpoint lie in the cache, the others on the Hub."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = tuple(sources)
        self._of = {file: source for source in sources for file in source.files}
        self._sizes = {file: self._of[file].files[file] for file in sorted(self._of)}

    @property
    def files(self) -> Mapping[str, int]:
        return self._sizes

    def read_into(self, file: str, start: int, buffer: memoryview) -> None:
        self._of[file].read_into(file, start, buffer)

    def prefetch(self, file: str, start: int, length: int) -> None:
        self._of[file].prefetch(file, start, length)

    def identity(self, file: str) -> str:
        return self._of[file].identity(file)

    def fingerprint(self, file: str) -> str:
        return self._of[file].fingerprint(file)

    def interrupt(self) -> None:
        for source in self._sources:
            source.interrupt()

    def close(self) -> None:
        for source in self._sources:
            source.close()


def _small(files: Sequence[RemoteFile]) -> frozenset[str]:
    """The smallest first, as many as may stay in memory."""
    room, found = MOST_SMALL, []
    for file in sorted(files, key=lambda f: f.size):
        room -= file.size
        if file.size > SMALL or room < 0:
            break
        found.append(file.name)
    return frozenset(found)


def lost(file: str, what: str) -> JobError:
    return JobError(
        f"{shown(file, most=300)} cannot be read from the Hub any more: {shown(what, most=300)}.",
        cure="Check the network. Finished matrices are kept: the same command goes on where this one stopped.",
        slug="hub-lost",
    )
