"""What an extraction will do, known from headers alone: for people and for programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from deltarank.jobs.extract.layout import Layout, Target, UnfactoredTensor
from deltarank.jobs.extract.options import AUTO, ExtractOptions
from deltarank.results import count, figure, listing, size
from deltarank.runtime import Plan, needs_line, reference_line, step_lines
from deltarank.servers import kind_in_words, rules_date


@dataclass(frozen=True)
class ExtractionPlan:
    """All that is known before a tensor is read. `lines()` is for people, `to_plain()` for programs.

    layout         what gets factors, what is carried whole, what is left out and why
    work           what is read and computed; its seconds and memory (bytes) are rough
    dtype          of A and B
    adapter_bytes  of the adapter on disk, at most; while it is made, as much again lies beside it
    searching      seconds of measuring that `--rank auto` needs first; 0 without

    With `--rank auto` the rank is not known: layout, bytes and seconds are those of the largest rank that may be taken.
    """

    options: ExtractOptions
    layout: Layout
    work: Plan
    dtype: str
    adapter_bytes: float
    searching: float

    @property
    def carried(self) -> tuple[UnfactoredTensor, ...]:
        """Tensors that go into the adapter whole, if they changed."""
        return tuple(other for other in self.layout.unfactored if other.has_place)

    @property
    def left_out(self) -> tuple[UnfactoredTensor, ...]:
        return tuple(other for other in self.layout.unfactored if not other.has_place)

    @property
    def notes(self) -> tuple[str, ...]:
        return (*self.work.notes, *self.layout.notes)

    @property
    def seconds(self) -> float:
        return self.work.seconds + self.searching

    def lines(self) -> list[str]:
        weights = sum(target.pair.entries for target in self.layout.targets)
        return [
            f"base      {reference_line(self.work.base)}",
            f"finetune  {reference_line(self.work.finetune)}",
            f"server    {self.options.server.name}: the rules of {self.options.server.title} as read in {rules_date()}",
            f"rank      {self._rank_line()}",
            "",
            f"{count(len(self.layout.targets), 'matrix', 'matrices')} to extract, {weights:,} weights:",
            *step_lines(self.work.steps),
            *self._smaller_lines(),
            "",
            *_kind_lines("carried, where they changed", self.carried),
            *_reason_lines(self.left_out),
            *[f"note: {note}" for note in self.notes],
            f"On disk: {size(self.adapter_bytes)}, and as much again while it is made.",
            needs_line(self.work, self.seconds),
        ]

    def _rank_line(self) -> str:
        if self.options.rank is not None:
            return f"{self.options.rank}; A and B in {self.dtype}"
        ranks = ", ".join(map(str, self.options.settings.ranks))
        return (
            f"auto: the smallest of {ranks} with a relative error of at most {figure(self.options.max_error)}; "
            f"below, what rank {self.layout.rank} would take; A and B in {self.dtype}"
        )

    def _smaller_lines(self) -> Iterator[str]:
        """What is padded, or gets a rank of its own, or nothing but zeros."""
        small = [target for target in self.layout.targets if min(target.pair.shape) < self.layout.rank]
        if small:
            own = any(target.rank < self.layout.rank for target in small)
            how = "get ranks of their own" if own else "are padded with zeros"
            yield f"{count(len(small), 'matrix', 'matrices')} of a smaller rank {how}: {_modules(small)}"
        if self.layout.empties:
            names = listing([empty.module for empty in self.layout.empties], most=3)
            yield f"zeros for {count(len(self.layout.empties), 'module')}, since every layer has to be there: {names}"

    def to_plain(self) -> dict[str, Any]:
        seconds = {step.pair.name: step.seconds for step in self.work.steps}
        work = self.work.to_plain()
        return {
            "base": work["base"],
            "finetune": work["finetune"],
            "settings": self.options.to_plain(),
            "server": self.options.server.name,
            "rank": self.options.rank or AUTO,
            "dtype": self.dtype,
            "matrices": [_target(target, seconds[target.pair.name]) for target in self.layout.targets],
            "zeros": [empty.module for empty in self.layout.empties],
            "carried": [{"name": other.name, "kind": other.kind} for other in self.carried],
            "left_out": [{"name": x.name, "kind": x.kind, "reason": x.reason} for x in self.left_out],
            "notes": list(self.notes),
            "adapter_bytes": self.adapter_bytes,
            "disk_bytes": 2 * self.adapter_bytes,
            "read_bytes": self.work.read_bytes,
            "peak_memory": self.work.peak_memory,
            "seconds": self.seconds,
        }


def at_most(options: ExtractOptions, targets: Sequence[Target]) -> int:
    """The rank that was asked for; with `--rank auto` the smallest servable rank that holds every matrix whole."""
    if options.rank is not None:
        return options.rank
    largest = max((min(target.pair.shape) for target in targets), default=1)
    ranks = options.settings.ranks
    return min((rank for rank in ranks if rank >= largest), default=max(ranks))


def _target(target: Target, seconds: float) -> dict[str, Any]:
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


def _modules(targets: Sequence[Target]) -> str:
    return listing(list(dict.fromkeys(target.pair.module for target in targets)), most=4)


def _kind_lines(heading: str, unfactored: Sequence[UnfactoredTensor]) -> Iterator[str]:
    kinds: dict[str, list[str]] = {}
    for other in unfactored:
        kinds.setdefault(other.kind, []).append(other.name)
    for kind, names in kinds.items():
        yield f"{heading}: {count(len(names), 'tensor')}, {kind_in_words(kind)} ({listing(names, most=3)})"


def _reason_lines(unfactored: Sequence[UnfactoredTensor]) -> Iterator[str]:
    reasons: dict[str, list[str]] = {}
    for other in unfactored:
        reasons.setdefault(other.reason, []).append(other.name)
    for reason, names in reasons.items():
        yield f"left out: {count(len(names), 'tensor')}: {reason} ({listing(names, most=3)})"
