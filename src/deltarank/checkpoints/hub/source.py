"""A checkpoint on the Hub as a source, without saving it to disk."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from deltarank.checkpoints.escape import quoted
from deltarank.checkpoints.file_errors import unreadable
from deltarank.checkpoints.formats.safetensors_header import LENGTH_BYTES, TYPICAL_HEADER_BYTES
from deltarank.checkpoints.hub.backoff import TransferError
from deltarank.checkpoints.hub.checksums import damaged, has_digest
from deltarank.checkpoints.hub.http_ranges import RangeReader, RemoteFile, Traffic
from deltarank.checkpoints.hub.read_ahead import MAX_BUFFERED_BYTES, ReadAhead
from deltarank.checkpoints.source import Source
from deltarank.errors import DeltarankError, JobError

SMALL_FILE_BYTES = TYPICAL_HEADER_BYTES
"""A file up to this size is fetched whole with its header, and its hash is checked."""

MAX_SMALL_FILES_BYTES = 32 << 20
"""Bytes of small files that are kept in memory."""


class Connection(Protocol):
    """How the files of a model are reached."""

    traffic: Traffic

    def open(self, file: RemoteFile) -> RangeReader: ...

    def stop(self) -> None:
        """Makes all reads fail soon."""

    def translate(self, error: Exception) -> DeltarankError:
        """The client library's exception as one of ours."""


class HubSource:
    """Files on the Hub by name, read ahead by ranges. Small files are fetched whole and stay in memory.

    A failed connection is a JobError, which ends the run: without the Hub no other matrix can be read either. A file
    that is not the one that was listed is a CheckpointError, which fails its own matrices only.
    """

    def __init__(self, files: Sequence[RemoteFile], connection: Connection) -> None:
        self._listed = {file.name: file for file in files}
        self._sizes = {file.name: file.size for file in files}
        self._readers = {file.name: connection.open(file) for file in files}
        self._small = _small_files(files)
        self._contents: dict[str, bytes] = {}
        self._lock = threading.Lock()
        self._connection = connection
        self._ahead = ReadAhead(self._fetch)

    def __reduce__(self) -> tuple[Any, ...]:
        """Without what was read ahead."""
        return HubSource, (list(self._listed.values()), self._connection)

    @property
    def bytes_read(self) -> int:
        """What was received so far."""
        return self._connection.traffic.received

    def count_elsewhere(self, nbytes: int) -> None:
        """Counts what another process received of these files."""
        self._connection.traffic.count(received=nbytes)

    @property
    def files(self) -> Mapping[str, int]:
        return self._sizes

    def identity(self, file: str) -> str:
        return f"blob {self._listed[file].digest}"

    def fingerprint(self, file: str) -> str:
        return self.identity(file)

    def prefetch(self, file: str, start: int, length: int) -> None:
        if file in self._small:
            start, length = 0, 0 if file in self._contents else self._sizes[file]
        self._ahead.prefetch(file, start, max(min(length, self._sizes[file] - start), 0))

    def read_into(self, file: str, start: int, buffer: memoryview) -> None:
        flat = buffer.cast("B") if buffer.nbytes else buffer
        if start + flat.nbytes > self._sizes[file]:
            raise unreadable(file, "it became shorter after its header was read")
        if file in self._small:
            flat[:] = self._content(file)[start : start + flat.nbytes]
            return
        self._ahead.read_into(file, start, flat)
        if start == LENGTH_BYTES and len(self._listed) * TYPICAL_HEADER_BYTES > MAX_BUFFERED_BYTES // 2:
            self._ahead.drop(file)  # with many files, tensors that came with the headers are read too late to be kept

    def interrupt(self) -> None:
        self._connection.stop()
        self._ahead.stop()

    def close(self) -> None:
        self._connection.stop()
        self._ahead.close()
        self._contents.clear()

    def _content(self, file: str) -> bytes:
        """A whole small file, its hash checked; a wrong one is fetched once more."""
        with self._lock:
            for is_last_try in (False, True):
                if file in self._contents:
                    break
                content = bytearray(self._sizes[file])
                self._ahead.read_into(file, 0, memoryview(content))
                if has_digest(content, self._listed[file].digest):
                    self._contents[file] = bytes(content)
                elif is_last_try:
                    raise damaged(file)
            return self._contents[file]

    def _fetch(self, file: str, start: int, view: memoryview) -> None:
        try:
            self._readers[file].read(start, view)
        except DeltarankError:
            raise
        except TransferError as error:
            raise _connection_lost(file, str(error)) from None
        # The client library's exceptions have no common base class.
        except Exception as error:
            translated = self._connection.translate(error)
            raise JobError(translated.message, cure=translated.cure, slug=translated.slug) from error


class CombinedSource:
    """Several sources as one: some files of a checkpoint are in the cache, the others on the Hub."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = tuple(sources)
        self._by_file = {file: source for source in sources for file in source.files}
        self._sizes = {file: self._by_file[file].files[file] for file in sorted(self._by_file)}

    @property
    def files(self) -> Mapping[str, int]:
        return self._sizes

    def read_into(self, file: str, start: int, buffer: memoryview) -> None:
        self._by_file[file].read_into(file, start, buffer)

    def prefetch(self, file: str, start: int, length: int) -> None:
        self._by_file[file].prefetch(file, start, length)

    def identity(self, file: str) -> str:
        return self._by_file[file].identity(file)

    def fingerprint(self, file: str) -> str:
        return self._by_file[file].fingerprint(file)

    def interrupt(self) -> None:
        for source in self._sources:
            source.interrupt()

    def close(self) -> None:
        for source in self._sources:
            source.close()


def _small_files(files: Sequence[RemoteFile]) -> frozenset[str]:
    """The smallest files first, as many as may stay in memory."""
    free_bytes, names = MAX_SMALL_FILES_BYTES, []
    for file in sorted(files, key=lambda f: f.size):
        free_bytes -= file.size
        if file.size > SMALL_FILE_BYTES or free_bytes < 0:
            break
        names.append(file.name)
    return frozenset(names)


def _connection_lost(file: str, problem: str) -> JobError:
    return JobError(
        f"The connection failed while {quoted(file, max_length=300)} was streamed: {quoted(problem, max_length=300)}.",
        cure="Check the network, then repeat the same command: finished matrices are kept, and the run resumes.",
        slug="hub-lost",
    )
