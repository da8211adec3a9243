"""How the groups of a pass become tasks of a cluster."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from deltarank.runtime import TaskT

SMALL_BYTES = 32_000_000
"""Groups that follow each other are one task up to this size: a task costs milliseconds, whatever is in it."""

LARGE_BYTES = 16_000_000_000
"""Groups with the same tensor of the base are one task up to this size, so that this tensor is read once for all. Of a
70B model these are 17 finetunes, some minutes of one core."""

Bundle = tuple[Sequence[TaskT], ...]


def bundle(groups: Sequence[Sequence[TaskT]]) -> list[Bundle[TaskT]]:
    """Bundles of groups, the largest first, so that no large one is left when the others are done."""
    return sorted(_bundles(groups), key=_nbytes, reverse=True)


def _bundles(groups: Sequence[Sequence[TaskT]]) -> Iterator[Bundle[TaskT]]:
    waiting: list[Sequence[TaskT]] = []
    size = 0
    for group in groups:
        nbytes = _nbytes((group,))
        most = LARGE_BYTES if waiting and _base(waiting[-1]) == _base(group) else SMALL_BYTES
        if waiting and size + nbytes > most:
            yield tuple(waiting)
            waiting, size = [], 0
        waiting.append(group)
        size += nbytes
    if waiting:
        yield tuple(waiting)


def _base(group: Sequence[TaskT]) -> tuple[int, str, int]:
    """The tensor of the base of the last task."""
    piece = group[-1].pair.base
    return id(piece.source), piece.file, piece.start


def _nbytes(groups: Bundle[TaskT]) -> int:
    return sum(task.pair.nbytes for group in groups for task in group)
