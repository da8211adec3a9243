"""One pass over the tensors of the base, each of which is read once, while those of the finetunes pass."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from deltarank.checkpoints import Piece, SharedSource, SummedTensor, rows_of_chunk
from deltarank.jobs.compare import MatrixMeasurer, group_small_matrices
from deltarank.jobs.fleet.extraction import Factored, FactorStep, FactorWorker
from deltarank.jobs.fleet.member import FleetStep, MeasuredMatrix, Member
from deltarank.jobs.fleet.sketches import encoded_sketch, length_for
from deltarank.runtime import (
    READ_RATE,
    TENSOR_FAILURES,
    DeltaReader,
    ProgressListener,
    SolverOptions,
    Step,
    TimeEstimate,
    matrix_pass,
    planned_seconds,
)
from deltarank.spectra import Sums

WINDOW_BYTES = 64_000_000
"""Of a tensor that is only summed, this much of the base is in memory at a time: an embedding may have gigabytes."""


class FleetMeasurer:
    """Measures matrices of several finetunes, as `MatrixMeasurer` does those of one, and sketches their deltas.

    Args:
        sketch_length: numbers in the sketch of a matrix.
    """

    def __init__(self, options: SolverOptions, *, sketch_length: int) -> None:
        self._options, self._sketch_length = options, sketch_length
        self._reader = DeltaReader(options)
        self._measurers: dict[int, MatrixMeasurer] = {}
        self._sketches: dict[int, str] = {}

    def results(self, steps: Sequence[FleetStep]) -> list[MeasuredMatrix]:
        """Those of a group, whose finetunes have equally many matrices."""
        self._sketches.clear()
        results = self._measurer(steps[0].matrices).results(steps)
        return [
            MeasuredMatrix(step.finetune, result, self._sketches.get(id(step)))
            for step, result in zip(steps, results, strict=True)
        ]

    def _measurer(self, matrices: int) -> MatrixMeasurer:
        if matrices not in self._measurers:
            self._measurers[matrices] = MatrixMeasurer(
                self._options, matrices=matrices, reader=self._reader, on_delta=self._sketch
            )
        return self._measurers[matrices]

    def _sketch(self, step: Step, delta: Tensor) -> None:
        self._sketches[id(step)] = encoded_sketch(step.pair.name, delta, self._sketch_length)


class FleetWorker:
    """Works on groups of either kind, in one thread, and releases their tensors of the base."""

    def __init__(self, options: SolverOptions, shared: SharedSource, *, sketch_length: int) -> None:
        self._measurer, self._shared = FleetMeasurer(options, sketch_length=sketch_length), shared
        self._factor_worker = FactorWorker()

    def results(self, steps: Sequence[FleetStep | FactorStep]) -> Sequence[MeasuredMatrix | Factored]:
        try:
            if isinstance(steps[0], FactorStep):
                return self._factor_worker.results([step for step in steps if isinstance(step, FactorStep)])
            return self._measurer.results([step for step in steps if isinstance(step, FleetStep)])
        finally:
            for step in steps:
                self._shared.done(step.pair.base)


@dataclass(frozen=True, eq=False)
class _Window:
    """Rows [first, last) of a tensor that is only summed."""

    member: Member
    tensor: SummedTensor
    first: int
    last: int

    @property
    def base(self) -> Piece:
        """These rows of the base."""
        piece = self.tensor.base
        start = piece.start + self.first * piece.shape[1] * piece.dtype.itemsize
        return replace(piece, start=start, shape=(self.last - self.first, piece.shape[1]))

    @property
    def is_last(self) -> bool:
        return self.last == self.tensor.base.shape[0]


class BasePass:
    """Measures all that is not finished of several finetunes. Their results are kept in their folders."""

    def __init__(self, members: Sequence[Member], shared: SharedSource, options: SolverOptions) -> None:
        self._members, self._shared, self._options = members, shared, options
        self._files = {file: number for number, file in enumerate(shared.files)}
        measured = [step for member in members for step in member.steps]
        factored = [step for member in members if member.extraction for step in member.extraction.steps]
        self._steps: list[FleetStep | FactorStep] = sorted(
            (*measured, *factored), key=lambda step: self._place(step.pair.base)
        )

    @property
    def seconds(self) -> float:
        """As planned."""
        summed = sum(tensor.nbytes for member in self._members for tensor in member.summed)
        return math.fsum(map(planned_seconds, self._steps)) + summed / READ_RATE

    def run(self, progress: ProgressListener) -> None:
        """
        Raises:
            OutputError: a result cannot be written.
        """
        estimate = TimeEstimate(progress, self.seconds)
        self._measure(progress, estimate)
        self._sum(progress, estimate)
        self._shared.expect(())

    def _place(self, piece: Piece) -> tuple[int, str, int]:
        """Where a piece of the base is: the base is read from its beginning to its end."""
        return self._files.get(piece.file, len(self._files)), piece.file, piece.start

    def _measure(self, progress: ProgressListener, estimate: TimeEstimate) -> None:
        self._shared.expect(step.pair.base for step in self._steps)
        members = {member.listed.name: member for member in self._members}
        results = matrix_pass(
            self._groups(),
            partial(FleetWorker, self._options, self._shared, sketch_length=length_for(self._members[0].job.base)),
            seconds=planned_seconds,
            workers=min((member.job.plan.parallel_matrices for member in self._members), default=1),
            device=self._options.torch_device,
            progress=progress,
            estimate=estimate,
        )
        with closing(results):
            for found in results:
                members[found.finetune].take(found)

    def _groups(self) -> list[tuple[FleetStep | FactorStep, ...]]:
        """Small matrices are measured together, those of several finetunes, too."""
        order = {id(step): number for number, step in enumerate(self._steps)}
        groups: list[tuple[FleetStep | FactorStep, ...]] = []
        of_runs: dict[int, list[FleetStep]] = {}
        for step in self._steps:
            if isinstance(step, FactorStep):
                groups.append((step,))
            else:
                of_runs.setdefault(step.matrices, []).append(step)
        groups += [group for steps in of_runs.values() for group in group_small_matrices(steps)]
        return sorted(groups, key=lambda group: order[id(group[-1])])

    def _sum(self, progress: ProgressListener, estimate: TimeEstimate) -> None:
        windows = sorted(self._windows(), key=lambda window: self._place(window.base))
        self._shared.expect(window.base for window in windows)
        sums: dict[tuple[Member, str], Sums | Exception] = {}
        reader = DeltaReader(self._options)
        for window in windows:
            key = window.member, window.tensor.name
            progress.began(window.tensor.name)
            sums[key] = _added(reader, window, sums.get(key, Sums()))
            self._shared.done(window.base)
            if window.is_last:
                window.member.take_sums(window.tensor, sums.pop(key))
                estimate.add(window.tensor.name, window.tensor.nbytes / READ_RATE)

    def _windows(self) -> Iterator[_Window]:
        for member in self._members:
            for tensor in member.summed:
                rows, step = tensor.base.shape[0], _window_rows(tensor.base)
                for first in range(0, rows, step):
                    yield _Window(member, tensor, first, min(first + step, rows))


def _window_rows(piece: Piece) -> int:
    """Whole chunks, so that the sums are added in the order in which `compare` adds them."""
    chunk = rows_of_chunk(piece)
    return chunk * max(1, WINDOW_BYTES // max(chunk * piece.shape[1] * piece.dtype.itemsize, 1))


def _added(reader: DeltaReader, window: _Window, total: Sums | Exception) -> Sums | Exception:
    """The sums with those of a window, or what failed."""
    if not isinstance(total, Sums):
        return total
    try:
        return reader.add_sums(total, window.tensor, first=window.first, last=window.last)
    except TENSOR_FAILURES as error:
        return error
