"""Interleaved runs: every run of a peer stands between two runs of each reference, and ratios are local.

A machine's speed drifts by tens of per cent within minutes, so a time measured now is never divided by one
measured an hour ago: a peer's run is divided by the mean of the nearest reference runs before and after it, and
of these ratios the median is stated.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from _process import Usage, run

Figures = Mapping[str, float]

NOTABLE_OTHERS = 0.1
"""Cores. A quiet machine stays under it; a run over it is marked as disturbed."""


@dataclass(frozen=True)
class Contestant:
    """Something that is run as a process.

    command  given a path that does not exist yet, to write to: the command line
    rounds   in how many rounds it takes part; a reference takes part in all
    read     given that path after the run: the cosine distance of each matrix, where it says so
    """

    name: str
    command: Callable[[Path], Sequence[str | Path]]
    rounds: int = 1
    read: Callable[[Path], Figures] | None = None


@dataclass(frozen=True)
class Run:
    contestant: str
    usage: Usage


@dataclass
class Contest:
    """References run before and after every peer; all runs in the order in which they were made."""

    references: Sequence[Contestant]
    peers: Sequence[Contestant]
    log: Callable[[list[dict[str, Any]]], object] = lambda runs: None
    runs: list[Run] = field(default_factory=list)
    figures: dict[str, Figures] = field(default_factory=dict)

    def hold(self) -> None:
        """Runs everything. `log` is given all runs so far after each, so that a stop loses nothing."""
        for contestant in self._order():
            usage = self._run(contestant)
            self.runs.append(Run(contestant.name, usage))
            self.log(self.plain())
            print(f"  {contestant.name}: {usage.wall:.1f} s{disturbance(usage)}", file=sys.stderr, flush=True)

    def of(self, name: str) -> list[Usage]:
        return [each.usage for each in self.runs if each.contestant == name]

    def ratios(self, name: str, reference: str) -> list[float]:
        """How many times as long each run of `name` took as the reference runs around it."""
        return [
            run.usage.wall / statistics.fmean(self._around(place, reference))
            for place, run in enumerate(self.runs)
            if run.contestant == name
        ]

    def plain(self) -> list[dict[str, Any]]:
        return [{"contestant": each.contestant, **asdict(each.usage)} for each in self.runs]

    def _order(self) -> Iterator[Contestant]:
        yield from self.references
        for number in range(max((peer.rounds for peer in self.peers), default=0)):
            for peer in self.peers:
                if number < peer.rounds:
                    yield peer
                    yield from self.references

    def _run(self, contestant: Contestant) -> Usage:
        folder = Path(tempfile.mkdtemp(prefix="deltarank-benchmark-"))
        try:
            usage = run(contestant.command(folder / "out"), folder / "log")
            if contestant.read and contestant.name not in self.figures:
                self.figures[contestant.name] = contestant.read(folder / "out")
        finally:
            shutil.rmtree(folder)
        return usage

    def _around(self, place: int, reference: str) -> list[float]:
        before = [each.usage.wall for each in self.runs[:place] if each.contestant == reference]
        after = [each.usage.wall for each in self.runs[place + 1 :] if each.contestant == reference]
        return before[-1:] + after[:1]


def disturbance(usage: Usage) -> str:
    """A word of caution if somebody else worked on the machine meanwhile."""
    if usage.others is None or usage.others < NOTABLE_OTHERS:
        return ""
    return f" (disturbed: others kept {usage.others:.1f} cores busy)"


def largest_difference(ours: Figures, theirs: Figures) -> float:
    """max over the matrices of |our cosine distance - theirs|.

    Raises:
        ValueError: they did not measure the same matrices.
    """
    if ours.keys() != theirs.keys():
        raise ValueError(f"measured by one and not the other: {sorted(ours.keys() ^ theirs.keys())[:5]}")
    return max(abs(ours[name] - theirs[name]) for name in ours)
