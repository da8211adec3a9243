"""What an extraction will do, from the headers of the checkpoints alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from deltarank.jobs.extract.layout import AdapterLayout, Target, UnfactoredTensor
from deltarank.jobs.extract.options import ExtractOptions
from deltarank.results import ShownAsLines, count, figure, listing, size
from deltarank.runtime import Plan, needs_line, reference_line, step_lines
from deltarank.tensor_names import kind_in_words


@dataclass(frozen=True, repr=False)
class ExtractionPlan(ShownAsLines):
    """What is known before a tensor is read. `lines()` is for people, `to_plain()` for programs.

    layout               what gets factors, what is carried whole, what is left out and why
    work                 what is read and computed; its seconds and memory (bytes) are estimates
    dtype                of A and B
    adapter_bytes        of the adapter on disk, at most; twice as much while it is being written
    rank_search_seconds  to measure the loss at every rank that `--rank auto` may choose; 0 for a given rank

    With `--rank auto` the rank is not known yet: layout, bytes and seconds are those of the largest rank that may be
    chosen.
    """

    options: ExtractOptions
    layout: AdapterLayout
    work: Plan
    dtype: str
    adapter_bytes: float
    rank_search_seconds: float

    @property
    def carried(self) -> tuple[UnfactoredTensor, ...]:
        """Tensors without factors that the adapter contains if they changed."""
        return tuple(tensor for tensor in self.layout.unfactored if tensor.can_be_carried)

    @property
    def left_out(self) -> tuple[UnfactoredTensor, ...]:
        return tuple(tensor for tensor in self.layout.unfactored if not tensor.can_be_carried)

    @property
    def notes(self) -> tuple[str, ...]:
        return (*self.work.notes, *self.layout.notes)

    @property
    def seconds(self) -> float:
        return self.work.seconds + self.rank_search_seconds

    def lines(self) -> list[str]:
        weights = sum(target.pair.entries for target in self.layout.targets)
        server = f"{self.options.server}: {self.layout.server.evidence.sentence}"
        return [
            f"base      {reference_line(self.work.base)}",
            f"finetune  {reference_line(self.work.finetune)}",
            f"server    {server}",
            f"rank      {self._rank_line()}",
            "",
            f"{count(len(self.layout.targets), 'matrix', 'matrices')} to extract, {weights:,} weights:",
            *step_lines(self.work.steps),
            *self._zeros_lines(),
            "",
            *_carried_lines(self.carried),
            *_left_out_lines(self.left_out),
            *[f"note: {note}" for note in self.notes],
            f"On disk: {size(self.adapter_bytes)}, and as much again while it is being written.",
            needs_line(self.work, self.seconds),
        ]

    def _rank_line(self) -> str:
        options = self.options
        if options.fixed_rank is not None:
            return f"{options.rank}; A and B in {self.dtype}"
        ranks = ", ".join(map(str, options.solver_options.ranks))
        return (
            f"auto: the smallest of {ranks} with a relative error of at most {figure(options.max_error)}; "
            f"the figures below are for rank {self.layout.rank}; A and B in {self.dtype}"
        )

    def _zeros_lines(self) -> Iterator[str]:
        """Matrices that are padded or get a rank of their own, and modules that get nothing but zeros."""
        layout = self.layout
        small = [target for target in layout.targets if min(target.pair.shape) < layout.rank]
        if small:
            have_own = any(target.rank < layout.rank for target in small)
            treatment = "get ranks of their own" if have_own else "are padded with zeros"
            modules = listing(list(dict.fromkeys(target.pair.module for target in small)), most=4)
            yield f"{count(len(small), 'matrix', 'matrices')} of a smaller rank {treatment}: {modules}"
        if layout.zero_modules:
            names = listing([zero.module for zero in layout.zero_modules], most=3)
            number = count(len(layout.zero_modules), "module")
            yield f"zeros for {number}, because servers need them beside the others: {names}"

    def to_plain(self) -> dict[str, Any]:
        seconds = {step.pair.name: step.seconds for step in self.work.steps}
        work = self.work.to_plain()
        return {
            "base": work["base"],
            "finetune": work["finetune"],
            "settings": self.options.to_plain(),
            "server": self.options.server,
            "rank": self.options.rank,
            "dtype": self.dtype,
            "matrices": [_target_to_plain(target, seconds[target.pair.name]) for target in self.layout.targets],
            "zeros": [zero.module for zero in self.layout.zero_modules],
            "carried": [{"name": x.name, "kind": x.kind} for x in self.carried],
            "left_out": [{"name": x.name, "kind": x.kind, "reason": x.reason} for x in self.left_out],
            "notes": list(self.notes),
            "adapter_bytes": self.adapter_bytes,
            "disk_bytes": 2 * self.adapter_bytes,
            "read_bytes": self.work.read_bytes,
            "peak_memory": self.work.peak_memory,
            "seconds": self.seconds,
        }


def _target_to_plain(target: Target, seconds: float) -> dict[str, Any]:
    pair = target.pair
    return {
        "name": pair.name,
        "path": target.module,
        "layer": pair.layer,
        "module": pair.module,
        "shape": list(pair.shape),
        "dtype": pair.dtype,
        "rank": target.rank,
        "seconds": seconds,
    }


def _carried_lines(tensors: Sequence[UnfactoredTensor]) -> Iterator[str]:
    kinds: dict[str, list[str]] = {}
    for tensor in tensors:
        kinds.setdefault(tensor.kind, []).append(tensor.name)
    for kind, names in kinds.items():
        yield f"carried if changed: {count(len(names), 'tensor')}: {kind_in_words(kind)} ({listing(names, most=3)})"


def _left_out_lines(tensors: Sequence[UnfactoredTensor]) -> Iterator[str]:
    reasons: dict[str, list[str]] = {}
    for tensor in tensors:
        reasons.setdefault(tensor.reason, []).append(tensor.name)
    for reason, names in reasons.items():
        yield f"left out: {count(len(names), 'tensor')}: {reason} ({listing(names, most=3)})"
