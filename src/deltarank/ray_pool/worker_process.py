"""A worker process of the cluster: it keeps the sources and the buffers of one pass from one task to the next."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import ray
import torch

from deltarank.checkpoints import Prefetcher, SharedSource
from deltarank.errors import CheckpointError, DeltarankError, JobError
from deltarank.ray_pool.references import Packed, Unpacker
from deltarank.runtime import Worker

THREADS = 1
"""For linear algebra: a task takes one core, and a machine runs as many tasks as it has cores."""


@dataclass
class _Pass:
    """One pass over many tensors, as far as this process takes part in it."""

    name: str
    unpacker: Unpacker = field(default_factory=lambda: Unpacker(ray.get))
    worker: Worker[Any, Any] | None = None


_current = _Pass("")


def run(node: str, name: str, make_worker: Packed, groups: Packed) -> tuple[str, Any]:
    """The results of groups of tasks, and the bytes that were read of sources that count them, by their keys.

    Args:
        node: the name of this machine.
        name: of the pass. Another one ends the one before.
    """
    global _current
    if _current.name != name:
        _close(_current)
        _current = _Pass(name)
        torch.set_num_threads(THREADS)
    try:
        return "done", _results(_current, make_worker, _unpacked(node, _current, make_worker, groups))
    except DeltarankError as error:
        return "failed", error


def _unpacked(node: str, current: _Pass, make_worker: Packed, groups: Packed) -> Any:
    """The groups. Makes the worker if there is none.

    Raises:
        JobError: (slug "ray-files") this machine lacks a file.
    """
    try:
        if current.worker is None:
            current.worker = current.unpacker.unpack(make_worker)()
        return current.unpacker.unpack(groups)
    except CheckpointError as error:
        raise JobError(
            f"The Ray worker on {node} does not have the files of this run: {error.message}",
            cure="Put the models where all machines of the cluster have them under the same path, such as a network "
            "disk; then repeat the same command to resume.",
            slug="ray-files",
        ) from None


def _results(current: _Pass, make_worker: Packed, groups: Any) -> tuple[list[Any], dict[int, int]]:
    pairs = [task.pair for group in groups for task in group]
    counting = {key: each for key, each in current.unpacker.sources.items() if hasattr(each, "count_elsewhere")}
    before = {key: each.bytes_read for key, each in counting.items()}
    shared = [each for each in counting.values() if isinstance(each, SharedSource)]
    for each in shared:
        each.expect(pair.base for pair in pairs)
    prefetcher = Prefetcher(pairs)
    results: list[Any] = []
    for group in groups:
        prefetcher.reached(len(results), at_least=len(group))
        assert current.worker is not None
        results += current.worker.results(group)
    for each in shared:
        each.expect(())
    return results, {key: each.bytes_read - before[key] for key, each in counting.items()}


def _close(ended: _Pass) -> None:
    sources: Iterable[Any] = ended.unpacker.sources.values()
    for source in sources:
        source.close()
