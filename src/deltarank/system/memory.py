"""How much memory this process may use."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_M_MMAP_THRESHOLD = -3
"""Of mallopt(3)."""

_LARGE_BLOCK = 1 << 20


def memory_limit(*, root: Path = Path("/")) -> int | None:
    """Bytes of memory: those of the machine, or of this process's control group where that allows less.

    None where the system does not tell. Swap does not count.

    Args:
        root: the folder that contains `proc` and `sys`.
    """
    return min((*_physical_memory(), *_control_group_limits(root)), default=None)


def _physical_memory() -> Iterator[int]:
    try:
        yield os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return


def _control_group_limits(root: Path) -> Iterator[int]:
    """The limits of the process's control group and of all above it, of version 1 and 2.

    A container often sees its own group as the topmost one, and the path of the host in `/proc/self/cgroup`: folders
    that are not there are ignored.
    """
    for controllers, group in _control_groups(root):
        if controllers and "memory" not in controllers.split(","):
            continue
        folder, file = ("memory", "memory.limit_in_bytes") if controllers else ("", "memory.max")
        top = root / "sys/fs/cgroup" / folder
        place = top / group.lstrip("/")
        for each in (place, *place.parents):
            yield from _number_in(each / file)
            if each == top:
                break


def _control_groups(root: Path) -> Iterator[tuple[str, str]]:
    """(controllers, path) of each line of `/proc/self/cgroup`; version 2 has no controllers there."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        yield controllers, group


def _number_in(file: Path) -> Iterator[int]:
    """Nothing for "max", and for a file that cannot be read."""
    try:
        yield int(file.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return


def free_large_blocks_at_once() -> None:
    """From now on, memory of a tensor of more than 1 MB goes back to the system when the tensor is dropped.

    glibc otherwise raises that size up to 32 MB as it goes, and keeps what is free between blocks that are in use.
    Nothing changes with another C library.
    """
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK)
