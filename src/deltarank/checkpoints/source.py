"""Where the bytes of a checkpoint come from: one small seam, and local files behind it."""

from __future__ import annotations

import io
import os
import stat
import threading
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

from deltarank.checkpoints.escape import shown
from deltarank.errors import CheckpointError

MOST_OPEN = 128
"""Files of one checkpoint that stay open. Common limits are 1,024 and 256 open files in a process."""

MOST_AT_ONCE = 1 << 30
"""Bytes asked of the system in one read: some systems refuse 2 GiB."""


class Source(Protocol):
    """Named files that can be read by position. A source may be read from several threads at once."""

    @property
    def files(self) -> Mapping[str, int]:
        """Name to size in bytes."""

    def read_into(self, file: str, start: int, buffer: memoryview) -> None:
        """Fills the whole buffer with the bytes of `file` from `start` on.

        Raises:
            CheckpointError: (slug "unreadable") the file is shorter than that, or cannot be read.
        """

    def prefetch(self, file: str, start: int, length: int) -> None:
        """A hint that these bytes will be read soon. Does nothing where nothing can be done."""

    def identity(self, file: str) -> str:
        """Equal for two files only if they are the same bytes, known without reading them."""

    def fingerprint(self, file: str) -> str:
        """Differs once the file was changed, and stays when the machine is started again."""

    def interrupt(self) -> None:
        """The program is stopping: reads that wait for a network fail soon. Others end as they would."""

    def close(self) -> None:
        """Lets go of everything. A second call does nothing."""


class LocalSource:
    """Files under one folder, by names relative to it. No memory map: pages of a map count as ours, reads do not.

    Raises:
        CheckpointError: a name is missing, is not a plain file, or may not be read.
    """

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        self._paths = {name: _resolved(folder / name) for name in names}
        status = {name: _status(path) for name, path in self._paths.items()}
        self._files = {name: s.st_size for name, s in status.items()}
        self._identities = {n: _identity(path, status[n]) for n, path in self._paths.items()}
        self._stamps = {n: _stamp(path, status[n]) for n, path in self._paths.items()}
        self._lock = threading.Lock()
        self._open: dict[str, int] = {}
        self._closer = weakref.finalize(self, _close_all, self._open)

    @property
    def files(self) -> Mapping[str, int]:
        return self._files

    def identity(self, file: str) -> str:
        return self._identities[file]

    def fingerprint(self, file: str) -> str:
        return self._stamps[file]

    def read_into(self, file: str, start: int, buffer: memoryview) -> None:
        flat = buffer.cast("B") if buffer.nbytes else buffer
        try:
            descriptor, kept = self._descriptor(file)
            try:
                done = self._fill(descriptor, start, flat)
            finally:
                if not kept:
                    os.close(descriptor)
        except OSError as error:
            raise unreadable(self._paths[file], error.strerror or str(error)) from None
        if done < flat.nbytes:
            raise unreadable(self._paths[file], "it became shorter since its header was read")

    def prefetch(self, file: str, start: int, length: int) -> None:
        if not hasattr(os, "posix_fadvise"):
            return
        try:
            descriptor, kept = self._descriptor(file)
            os.posix_fadvise(descriptor, start, length, os.POSIX_FADV_WILLNEED)
            if not kept:
                os.close(descriptor)
        except OSError:
            return  # A hint: the read that follows will say what is wrong.

    def interrupt(self) -> None:
        """A disk answers soon anyway."""

    def close(self) -> None:
        with self._lock:
            _close_all(self._open)

    def _descriptor(self, file: str) -> tuple[int, bool]:
        """An open file, and whether it stays open after the read."""
        with self._lock:
            if file in self._open:
                return self._open[file], True
            descriptor = os.open(self._paths[file], os.O_RDONLY | getattr(os, "O_BINARY", 0))
            kept = len(self._open) < MOST_OPEN
            if kept:
                self._open[file] = descriptor
            return descriptor, kept

    def _fill(self, descriptor: int, start: int, buffer: memoryview) -> int:
        """Bytes that were read: all that were asked for, unless the file ends before."""
        done = 0
        while done < buffer.nbytes:
            part = buffer[done : done + MOST_AT_ONCE]
            got = self._read_at(descriptor, start + done, part)
            if got == 0:
                break
            done += got
        return done

    def _read_at(self, descriptor: int, start: int, buffer: memoryview) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(descriptor, [buffer], start)
        with self._lock:  # Systems without positioned reads: the position belongs to all threads.
            os.lseek(descriptor, start, os.SEEK_SET)
            return io.FileIO(descriptor, closefd=False).readinto(buffer) or 0


def unreadable(path: Path | str, what: str) -> CheckpointError:
    return CheckpointError(
        f"{shown(path, most=300)} cannot be read: {what}.",
        cure="Check that the file is whole, that you may read it, and that its disk is well; then run it again.",
        slug="unreadable",
    )


def _close_all(descriptors: dict[str, int]) -> None:
    while descriptors:
        os.close(descriptors.popitem()[1])


def _resolved(path: Path) -> Path:
    try:
        return path.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: a circle of links
        raise unreadable(path, getattr(error, "strerror", None) or "a circle of links") from None


def _status(path: Path) -> os.stat_result:
    try:
        status = path.stat()
    except OSError as error:
        raise unreadable(path, error.strerror or str(error)) from None
    if not stat.S_ISREG(status.st_mode):
        raise unreadable(path, "it is not a plain file")
    return status


def _blob(path: Path) -> str | None:
    """The content's hash, where the file lies in the Hub's cache: there a blob is named by it."""
    return path.name if path.parent.name == "blobs" and len(path.name) in (40, 64) else None


def _identity(path: Path, status: os.stat_result) -> str:
    blob = _blob(path)
    return f"blob {blob}" if blob else f"file {status.st_dev} {status.st_ino} {path if not status.st_ino else ''}"


def _stamp(path: Path, status: os.stat_result) -> str:
    blob = _blob(path)
    return f"blob {blob}" if blob else f"file {status.st_size} {status.st_mtime_ns}"
