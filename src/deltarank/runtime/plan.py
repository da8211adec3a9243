"""What a run will do, from the headers of the checkpoints alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from deltarank.checkpoints import Checkpoint, Pair, Pairing, SummedTensor
from deltarank.errors import JobError
from deltarank.results import Outcome, Reference, ShownAsLines, Skipped, count, duration, listing, size
from deltarank.runtime.solver_options import SolverOptions
from deltarank.spectra import choose_solver, device_rates, exact_seconds, krylov_memory, krylov_seconds
from deltarank.system import memory_limit

READ_RATE = 1.2e9
"""Bytes a second to read, upcast and subtract, on two cores from a disk whose files are cached."""

FIXED_MEMORY = 600e6
"""Bytes that Python, torch and their libraries, the charts of the page and small buffers need."""

FIXED_SECONDS = 3.0
"""What every run takes beside its matrices: to import torch, open files, draw the page, and end. Two cores, idle."""

PROMISED_MEMORY = 1e9
"""A run needs at most this many bytes and three times its largest matrix in float32, whatever the number of layers."""


@dataclass(frozen=True)
class Step:
    """One matrix to measure: the solver, and the seconds and bytes of memory that it is expected to take."""

    pair: Pair
    solver: str
    seconds: float
    memory: float


StepPlanner = Callable[[Pair, SolverOptions], Step]


@dataclass(frozen=True, repr=False)
class Plan(ShownAsLines):
    """What is known before a tensor is read. `lines()` is for people, `to_plain()` for programs.

    `seconds` and `peak_memory` (bytes) are estimates: the rates behind them were measured on one machine.
    """

    base: Reference
    finetune: Reference
    options: SolverOptions
    steps: tuple[Step, ...]
    pairing: Pairing
    notes: tuple[str, ...]

    @property
    def read_bytes(self) -> int:
        read: tuple[Pair | SummedTensor, ...] = (*self.pairing.pairs, *self.pairing.summed)
        return sum(each.nbytes for each in read)

    @property
    def seconds(self) -> float:
        return FIXED_SECONDS + self.work_seconds

    @property
    def work_seconds(self) -> float:
        """Of the matrices alone."""
        return math.fsum(step.seconds for step in self.steps) + self.read_bytes / READ_RATE

    @property
    def parallel_matrices(self) -> int:
        """How many matrices are measured at a time: two, if that stays within PROMISED_MEMORY."""
        two = math.fsum(sorted((step.memory for step in self.steps), reverse=True)[:2])
        largest = max((4.0 * step.pair.entries for step in self.steps), default=0.0)
        cores = torch.get_num_threads() if self.options.torch_device.type == "cpu" else 2
        return 2 if cores > 1 and FIXED_MEMORY + two <= PROMISED_MEMORY + 3 * largest else 1

    @property
    def peak_memory(self) -> float:
        """Bytes."""
        return FIXED_MEMORY + math.fsum(
            sorted((step.memory for step in self.steps), reverse=True)[: self.parallel_matrices]
        )

    def lines(self) -> list[str]:
        entries = sum(step.pair.entries for step in self.steps)
        return [
            f"base      {reference_line(self.base)}",
            f"finetune  {reference_line(self.finetune)}",
            f"ranks     {', '.join(map(str, self.options.ranks))}",
            "",
            f"{count(len(self.steps), 'matrix', 'matrices')} to measure, {entries:,} weights:",
            *step_lines(self.steps),
            "",
            *_not_measured_lines(self.pairing),
            *_shared_lines(self.pairing),
            *[f"note: {note}" for note in self.notes],
            needs_line(self, self.seconds),
        ]

    def to_plain(self) -> dict[str, Any]:
        return {
            "base": {"ref": self.base.ref, "revision": self.base.revision, "files": dict(self.base.files)},
            "finetune": {
                "ref": self.finetune.ref,
                "revision": self.finetune.revision,
                "files": dict(self.finetune.files),
            },
            "settings": self.options.to_plain(),
            "steps": [
                {
                    "name": step.pair.name,
                    "layer": step.pair.layer,
                    "module": step.pair.module,
                    "shape": list(step.pair.shape),
                    "dtype": step.pair.dtype,
                    "solver": step.solver,
                    "seconds": step.seconds,
                }
                for step in self.steps
            ],
            "left_out": [
                {"name": each.name, "outcome": each.outcome.value, "reason": each.reason, "shape": list(each.shape)}
                for each in _not_measured(self.pairing)
            ],
            "notes": list(self.notes),
            "peak_memory": self.peak_memory,
            "read_bytes": self.read_bytes,
            "seconds": self.seconds,
        }


def make_plan(
    base: Checkpoint, finetune: Checkpoint, pairing: Pairing, options: SolverOptions, *, step: StepPlanner | None = None
) -> Plan:
    """The plan of a pass over two checkpoints.

    Args:
        step: plans one matrix; by default, to measure it.

    Raises:
        JobError: (slug "not-enough-memory") a matrix needs more memory than this machine has.
    """
    steps = tuple((step or measuring_step)(pair, options) for pair in pairing.pairs)
    plan = Plan(base.reference, finetune.reference, options, steps, pairing, pairing.notes)
    check_memory(plan)
    return plan


def measuring_step(pair: Pair, options: SolverOptions) -> Step:
    """The cost of measuring one matrix at all ranks of the options."""
    rows, columns = pair.shape
    device = options.torch_device
    solver = choose_solver(options.solver, rows, columns, options.ranks, device, tolerance=options.tolerance)
    known = device_rates(device, options.tolerance)
    if solver == "exact":
        seconds = exact_seconds(rows, columns, known)
    else:
        seconds = krylov_seconds(rows, columns, max(options.ranks), known)
    return Step(pair, solver, seconds, _memory(pair, solver, options))


def _memory(pair: Pair, solver: str, options: SolverOptions) -> float:
    """Bytes for the delta, and for the Gram matrix and the solver's copy of it or for the Krylov space."""
    number = options.torch_dtype.itemsize
    side = min(pair.shape)
    if solver == "exact":
        return number * (pair.entries + 2.0 * side * side)
    return krylov_memory(*pair.shape, max(options.ranks), device_rates(options.torch_device, options.tolerance), number)


def check_memory(plan: Plan) -> None:
    """Raises JobError (slug "not-enough-memory")."""
    held = memory_limit()
    if held is None or plan.options.torch_device.type == "cuda" or plan.peak_memory <= held:
        return
    largest = max(plan.steps, key=lambda step: step.memory)
    raise JobError(
        f"{largest.pair.name} of shape {' x '.join(map(str, largest.pair.shape))} needs about "
        f"{size(plan.peak_memory)}; this machine or container has {size(held)}.",
        cure="Leave it out with --exclude, or use a machine with more memory.",
        slug="not-enough-memory",
    )


def needs_line(plan: Plan, seconds: float) -> str:
    return needs_text(plan.read_bytes, plan.peak_memory, seconds, plan.options)


def needs_text(read_bytes: float, peak_memory: float, seconds: float, options: SolverOptions) -> str:
    """What a job needs: bytes to read, bytes of memory, and time."""
    memory = f"about {size(peak_memory)}{_of_memory()}"
    return f"To read: {size(read_bytes)}. Peak memory: {memory}. Estimated time: {_time(options, seconds)}."


def _time(options: SolverOptions, seconds: float) -> str:
    """The rates of a CPU were measured on two cores; those of other devices are rough."""
    if options.torch_device.type != "cpu":
        return f"{duration(seconds)} on {options.device}, roughly"
    threads = torch.get_num_threads()
    return f"{duration(seconds)} on 2 CPU threads" + (f" (this run uses {threads})" if threads != 2 else "")


def _of_memory() -> str:
    held = memory_limit()
    return f" (this machine or container has {size(held)})" if held else ""


def reference_line(reference: Reference) -> str:
    """One line: the reference, its commit, its number of files and its size."""
    revision = f" at {reference.revision}" if reference.revision else ""
    return f"{reference.ref}{revision}, {count(len(reference.files), 'file')}, {size(sum(reference.files.values()))}"


def step_lines(steps: tuple[Step, ...]) -> Iterator[str]:
    """A line for each (module, shape, dtype, solver)."""
    groups: dict[tuple[str, tuple[int, int], str, str], list[Step]] = {}
    for step in steps:
        groups.setdefault((step.pair.module, step.pair.shape, step.pair.dtype, step.solver), []).append(step)
    width = max((len(module) for module, *_ in groups), default=0)
    for (module, shape, dtype, solver), members in groups.items():
        seconds = math.fsum(step.seconds for step in members)
        yield (
            f"  {len(members):>6,} x {module:<{width}}  {shape[0]:>6} x {shape[1]:<6} {dtype}, {solver}, "
            f"{duration(seconds)}"
        )


def _not_measured(pairing: Pairing) -> tuple[SummedTensor | Skipped, ...]:
    return (*pairing.summed, *pairing.skipped)


def _not_measured_lines(pairing: Pairing) -> Iterator[str]:
    groups: dict[Outcome, list[str]] = {}
    for each in _not_measured(pairing):
        groups.setdefault(each.outcome, []).append(each.name)
    for outcome, names in groups.items():
        yield f"not measured: {count(len(names), 'tensor')}: {outcome.sentence} ({listing(names, most=3)})"


def _shared_lines(pairing: Pairing) -> Iterator[str]:
    both: tuple[Pair | SummedTensor, ...] = (*pairing.pairs, *pairing.summed)
    shared = [each for each in both if len(each.pieces) == 1]
    if shared:
        yield f"identical: {count(len(shared), 'tensor')} in files known to be the same on both sides, read once"
