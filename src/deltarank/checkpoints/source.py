"""Where the bytes of a checkpoint come from: the `Source` protocol, and local files."""

from __future__ import annotations

import io
import os
import stat
import threading
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from deltarank.checkpoints.file_errors import unreadable, unreadable_because

MAX_OPEN_FILES = 128
"""Files of all checkpoints that stay open. Common limits are 1,024 and 256 open files per process."""

_kept_open: set[int] = set()
"""Their descriptors: a fleet has hundreds of checkpoints, of many files each."""

MAX_READ_BYTES = 1 << 30
"""Bytes of one read call: some systems refuse 2 GiB."""


class Source(Protocol):
    """Named files that are read by position. Several threads may read at once.

    A pickled source is a reference to its files: in another process, it opens them there.
    """

    @property
    def files(self) -> Mapping[str, int]:
        """File name to size in bytes."""

    def read_into(self, file: str, start: int, buffer: memoryview) -> None:
        """Fills the whole buffer with the bytes of `file` from `start` on.

        Raises:
            CheckpointError: (slug "unreadable") the file is shorter than that, or cannot be read.
        """

    def prefetch(self, file: str, start: int, length: int) -> None:
        """Hints that these bytes will be read soon. May do nothing."""

    def identity(self, file: str) -> str:
        """Equal for two files only if they hold the same bytes; known without reading them."""

    def fingerprint(self, file: str) -> str:
        """Changes when the file is changed, and survives a reboot."""

    def interrupt(self) -> None:
        """Makes reads that wait for a network fail soon, because the program is stopping."""

    def close(self) -> None:
        """Releases everything. A second call does nothing."""


class LocalSource:
    """Files below one folder, named relative to it.

    They are read, not memory-mapped: pages of a map count as the process's memory.

    Raises:
        CheckpointError: a file is missing, is not a regular file, or may not be read.
    """

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        self._set({name: _resolved(folder / name) for name in names})

    def _set(self, paths: dict[str, Path]) -> None:
        self._paths = paths
        status = {name: _status(path) for name, path in self._paths.items()}
        self._files = {name: s.st_size for name, s in status.items()}
        self._identities = {name: _identity(path, status[name]) for name, path in self._paths.items()}
        self._fingerprints = {name: _fingerprint(path, status[name]) for name, path in self._paths.items()}
        self._lock = threading.Lock()
        self._open: dict[str, int] = {}
        self._closer = weakref.finalize(self, _close_all, self._open)

    def __getstate__(self) -> Mapping[str, Any]:
        """Where the files are, and which they are."""
        return {"paths": self._paths, "fingerprints": self._fingerprints}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        """Looks the files up in this process, perhaps on another machine.

        Raises:
            CheckpointError: (slug "unreadable") a file is missing, or is not the one that was referred to.
        """
        self._set({name: _resolved(path) for name, path in state["paths"].items()})
        for name, fingerprint in state["fingerprints"].items():
            if self._fingerprints[name] != fingerprint:
                raise unreadable(
                    self._paths[name], "its size or its time differs from that of the file that was planned"
                )

    @property
    def files(self) -> Mapping[str, int]:
        return self._files

    def path(self, file: str) -> Path:
        return self._paths[file]

    def identity(self, file: str) -> str:
        return self._identities[file]

    def fingerprint(self, file: str) -> str:
        return self._fingerprints[file]

    def read_into(self, file: str, start: int, buffer: memoryview) -> None:
        flat = buffer.cast("B") if buffer.nbytes else buffer
        try:
            descriptor, stays_open = self._descriptor(file)
            try:
                done = self._fill(descriptor, start, flat)
            finally:
                if not stays_open:
                    os.close(descriptor)
        except OSError as error:
            raise unreadable_because(self._paths[file], error) from None
        if done < flat.nbytes:
            raise unreadable(self._paths[file], "it became shorter after its header was read")

    def prefetch(self, file: str, start: int, length: int) -> None:
        if not hasattr(os, "posix_fadvise"):
            return
        try:
            descriptor, stays_open = self._descriptor(file)
            os.posix_fadvise(descriptor, start, length, os.POSIX_FADV_WILLNEED)
            if not stays_open:
                os.close(descriptor)
        except OSError:
            return  # only a hint: the read that follows reports what is wrong

    def interrupt(self) -> None:
        """Nothing to do: a disk answers soon."""

    def close(self) -> None:
        with self._lock:
            _close_all(self._open)

    def _descriptor(self, file: str) -> tuple[int, bool]:
        """An open file, and whether it stays open after the read."""
        with self._lock:
            if file in self._open:
                return self._open[file], True
            descriptor = os.open(self._paths[file], os.O_RDONLY | getattr(os, "O_BINARY", 0))
            stays_open = len(_kept_open) < MAX_OPEN_FILES
            if stays_open:
                self._open[file] = descriptor
                _kept_open.add(descriptor)
            return descriptor, stays_open

    def _fill(self, descriptor: int, start: int, buffer: memoryview) -> int:
        """The number of bytes read: all of them, unless the file ends first."""
        done = 0
        while done < buffer.nbytes:
            received = self._read_at(descriptor, start + done, buffer[done : done + MAX_READ_BYTES])
            if received == 0:
                break
            done += received
        return done

    def _read_at(self, descriptor: int, start: int, buffer: memoryview) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(descriptor, [buffer], start)
        with self._lock:  # without positioned reads, all threads share one file position
            os.lseek(descriptor, start, os.SEEK_SET)
            return io.FileIO(descriptor, closefd=False).readinto(buffer) or 0


def _close_all(descriptors: dict[str, int]) -> None:
    while descriptors:
        descriptor = descriptors.popitem()[1]
        _kept_open.discard(descriptor)
        os.close(descriptor)


def _resolved(path: Path) -> Path:
    try:
        return path.resolve(strict=True)
    except OSError as error:
        if path.is_symlink() and not path.exists():
            raise unreadable(path, "it is a link to a file that does not exist") from None
        raise unreadable_because(path, error) from None
    except RuntimeError:
        raise unreadable(path, "its symbolic links form a loop") from None


def _status(path: Path) -> os.stat_result:
    try:
        status = path.stat()
    except OSError as error:
        raise unreadable_because(path, error) from None
    if not stat.S_ISREG(status.st_mode):
        raise unreadable(path, "it is not a regular file")
    return status


def _blob(path: Path) -> str | None:
    """The hash of the content of a file in the Hub's cache, where blobs are named by it; else None."""
    return path.name if path.parent.name == "blobs" and len(path.name) in (40, 64) else None


def _identity(path: Path, status: os.stat_result) -> str:
    blob = _blob(path)
    return f"blob {blob}" if blob else f"file {status.st_dev} {status.st_ino} {path if not status.st_ino else ''}"


def _fingerprint(path: Path, status: os.stat_result) -> str:
    blob = _blob(path)
    return f"blob {blob}" if blob else f"file {status.st_size} {status.st_mtime_ns}"
