"""What `fleet` will do, from the headers of the checkpoints alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from deltarank.jobs.extract import ExtractionPlan
from deltarank.jobs.fleet.base_pass import WINDOW_BYTES
from deltarank.jobs.fleet.finetunes import Listed
from deltarank.jobs.fleet.member import Member
from deltarank.results import Reference, ShownAsLines, count, escape, format_table, size
from deltarank.runtime import FIXED_MEMORY, FIXED_SECONDS, READ_RATE, SolverOptions, needs_text, reference_line

SKETCH_RATE = 2e8
"""Weights a second whose delta is sketched, on two cores: 10 ns each on one."""

MOST_HEADER_BYTES = 400_000_000
"""Finetunes that need more memory than this for their headers are measured in several passes over the base."""


@dataclass(frozen=True)
class PlannedFinetune:
    """What is known of one finetune.

    reason        why it will not be measured
    is_finished   whether an earlier process measured it
    workers       matrices that are measured at a time
    worker_memory bytes of memory for them, with their tensors of the base
    header_bytes  of memory while it is open
    adapter_bytes of the adapter, if one is asked for
    """

    listed: Listed
    reason: str | None = None
    is_finished: bool = False
    matrices: int = 0
    read_bytes: int = 0
    seconds: float = 0.0
    workers: int = 1
    worker_memory: float = 0.0
    header_bytes: int = 0
    adapter_bytes: float = 0.0

    @classmethod
    def of(cls, member: Member, adapter: ExtractionPlan | None) -> Self:
        """
        Args:
            adapter: the plan of its adapter, if one is to be made.
        """
        plan = member.job.plan
        workers = plan.parallel_matrices
        weights = sum(step.pair.entries for step in plan.steps)
        steps = (*plan.steps, *(adapter.work.steps if adapter else ()))
        each = sorted((step.memory + step.pair.base.nbytes for step in steps), reverse=True)
        return cls(
            listed=member.listed,
            is_finished=member.is_done,
            matrices=len(plan.steps),
            read_bytes=_read_bytes(member, adapter),
            seconds=plan.work_seconds + weights / SKETCH_RATE + (adapter.seconds if adapter else 0.0),
            workers=workers,
            worker_memory=math.fsum(each[:workers]),
            header_bytes=member.header_bytes,
            adapter_bytes=adapter.adapter_bytes if adapter else 0.0,
        )

    @property
    def is_waiting(self) -> bool:
        return self.reason is None and not self.is_finished

    def to_plain(self) -> dict[str, Any]:
        return {
            "name": self.listed.name,
            "reference": self.listed.reference,
            "reason": self.reason,
            "is_finished": self.is_finished,
            "matrices": self.matrices,
            "read_bytes": self.read_bytes,
            "seconds": self.seconds,
            "adapter_bytes": self.adapter_bytes,
        }


@dataclass(frozen=True, repr=False)
class FleetPlan(ShownAsLines):
    """What is known before a tensor is read. `lines()` is for people, `to_plain()` for programs.

    base_bytes  of the base, which are read in each of `passes`
    """

    base: Reference
    base_bytes: int
    options: SolverOptions
    finetunes: tuple[PlannedFinetune, ...]
    notes: tuple[str, ...]

    @property
    def waiting(self) -> list[PlannedFinetune]:
        return [each for each in self.finetunes if each.is_waiting]

    @property
    def passes(self) -> int:
        return len(passes_of([each.header_bytes for each in self.waiting]))

    @property
    def read_bytes(self) -> int:
        return self.passes * self.base_bytes + sum(each.read_bytes for each in self.waiting)

    @property
    def seconds(self) -> float:
        """As for as many runs of `compare`, less the time to read the base for all but the first."""
        read = self.base_bytes / READ_RATE
        saved = (len(self.waiting) - self.passes) * read
        return FIXED_SECONDS + max(math.fsum(each.seconds for each in self.waiting) - saved, 0.0)

    @property
    def peak_memory(self) -> float:
        """Bytes."""
        waiting = self.waiting
        headers = [each.header_bytes for each in waiting]
        held = max((sum(part) for part in passes_of(headers)), default=0)
        working = max((each.worker_memory for each in waiting), default=0.0)
        return FIXED_MEMORY + max(working, 2.0 * WINDOW_BYTES) + held

    def lines(self) -> list[str]:
        finished = sum(each.is_finished for each in self.finetunes)
        failed = [each for each in self.finetunes if each.reason]
        rows = [("finetune", "matrices", "to read", ""), *map(_row, self.finetunes)]
        return [
            f"base   {reference_line(self.base)}",
            f"ranks  {', '.join(map(str, self.options.ranks))}",
            "",
            *format_table(rows, align="<>><", indent=2),
            "",
            f"{count(len(self.waiting), 'finetune')} to measure, {finished} finished, {len(failed)} not measurable.",
            *[f"not measured: {each.listed.name}: {each.reason}" for each in failed],
            *[f"note: {note}" for note in self.notes],
            *self._adapters_line(),
            f"The base is read {_times(self.passes)}: {size(self.passes * self.base_bytes)} of the bytes to read.",
            needs_text(self.read_bytes, self.peak_memory, self.seconds, self.options),
        ]

    def _adapters_line(self) -> list[str]:
        adapters = [each.adapter_bytes for each in self.waiting if each.adapter_bytes]
        return [f"{count(len(adapters), 'adapter')} to extract: {size(sum(adapters))} on disk."] if adapters else []

    def to_plain(self) -> dict[str, Any]:
        return {
            "base": {"ref": self.base.ref, "revision": self.base.revision, "files": dict(self.base.files)},
            "settings": self.options.to_plain(),
            "finetunes": [each.to_plain() for each in self.finetunes],
            "notes": list(self.notes),
            "passes": self.passes,
            "base_bytes": self.base_bytes,
            "read_bytes": self.read_bytes,
            "peak_memory": self.peak_memory,
            "seconds": self.seconds,
        }


def _read_bytes(member: Member, adapter: ExtractionPlan | None) -> int:
    """Of the finetune alone. An adapter as the finetune has its own files, and the rest is the base's."""
    if member.job.finetune.added is not None:
        return sum(member.job.plan.finetune.files.values())
    pairing = member.job.plan.pairing
    factored = [target.pair for target in adapter.layout.targets] if adapter else []
    pairs = (*pairing.pairs, *pairing.summed, *factored)
    return sum(pair.finetune.stored_nbytes for pair in pairs if len(pair.pieces) > 1)


def passes_of(header_bytes: Sequence[int]) -> list[list[int]]:
    """The finetunes, by the bytes of their headers, split into passes that stay within MOST_HEADER_BYTES."""
    parts: list[list[int]] = []
    for each in header_bytes:
        if not parts or sum(parts[-1]) + each > MOST_HEADER_BYTES:
            parts.append([])
        parts[-1].append(each)
    return parts


def _row(each: PlannedFinetune) -> tuple[str, str, str, str]:
    if each.reason:
        return escape(each.listed.name), "", "", "not measured"
    note = "finished" if each.is_finished else ""
    return escape(each.listed.name), f"{each.matrices:,}", size(each.read_bytes), note


def _times(number: int) -> str:
    return {0: "not at all", 1: "once", 2: "twice"}.get(number, f"{number} times")
