"""Measures one matrix: reads the pair, solves for the spectrum of its difference, states the loss at every rank."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from deltarank.adapters import is_adapted, low_rank_factors
from deltarank.checkpoints import Pair, read_chunks, read_rows
from deltarank.jobs.compare.noise_edges import NoiseEdges, new_noise
from deltarank.jobs.compare.spectrum_detail import SpectrumDetail
from deltarank.results import Loss, MatrixResult, Outcome
from deltarank.runtime import TENSOR_FAILURES, DeltaReader, SolverOptions, Step, failure_outcome
from deltarank.spectra import (
    Spectrum,
    Sums,
    Workspace,
    batch_size,
    make_solver,
    measure_batch,
    measure_spectrum,
    product_spectrum,
    product_sums,
    subtract_batch,
)

StepT = TypeVar("StepT", bound=Step)

DIGITS = 8
"""Significant digits of a singular value in the results: float32 has seven."""


class MatrixMeasurer:
    """Measures one matrix after another, in one thread.

    Args:
        matrices: the number of matrices of the run: of many, less of each spectrum is stored.
        reader: one whose buffers are used, too.
        on_delta: called with the step and the delta, (rows, columns), of each matrix that changed, before it is solved.
            The delta is a buffer that is overwritten afterwards.
    """

    def __init__(
        self,
        options: SolverOptions,
        *,
        matrices: int = 1,
        reader: DeltaReader | None = None,
        on_delta: Callable[[Step, Tensor], None] | None = None,
    ) -> None:
        self._options = options
        self._on_delta = on_delta
        self._detail = SpectrumDetail.of_run(matrices, options.ranks)
        self._reader = reader or DeltaReader(options)
        self._workspace = self._reader.workspace
        self._host_workspace = Workspace()

    def result(self, step: Step) -> MatrixResult:
        """A matrix that cannot be read or computed gives a result with that outcome."""
        started = time.perf_counter()
        try:
            result = self._from_factors(step) or self._from_entries(step)
        except TENSOR_FAILURES as error:
            result = _without_figures(step.pair, *failure_outcome(error))
        return replace(result, seconds=round(time.perf_counter() - started, 4))

    def results(self, steps: Sequence[Step]) -> list[MatrixResult]:
        """The results of a group of `group_small_matrices`, computed at once if they are small.

        A single small matrix goes the same way, so that no number depends on which matrices share its group.
        """
        if _group_size(steps[0]) == 1 or any(is_adapted(step.pair) for step in steps):
            return [self.result(step) for step in steps]
        started = time.perf_counter()
        try:
            found = self._stacked(steps)
        except TENSOR_FAILURES:
            return [self.result(step) for step in steps]  # finds out which of them failed
        seconds = round((time.perf_counter() - started) / len(steps), 6)
        return [replace(result, seconds=seconds) for result in found]

    def _stacked(self, steps: Sequence[Step]) -> list[MatrixResult]:
        deltas, sums, edges = self._load_stack([step.pair for step in steps])
        for delta, each in zip(deltas, sums, strict=True):
            if not each.is_finite:
                delta.zero_()  # the eigenvalues of all of the group are computed in one call
        spectra = measure_batch(
            deltas,
            [each.energy for each in sums],
            ranks=self._options.ranks,
            edges=[each.edge for each in edges],
            workspace=self._workspace,
        )
        return [self._measured(*each) for each in zip(steps, deltas, sums, edges, spectra, strict=True)]

    def _load_stack(self, pairs: Sequence[Pair]) -> tuple[Tensor, list[Sums], list[NoiseEdges]]:
        """Deltas of matrices of one shape, (n, rows, columns), the sums of each, and the noise edge of each."""
        size = (len(pairs), *pairs[0].shape)
        before, after = (
            self._host_workspace.empty(side, size, getattr(pairs[0], side).dtype) for side in ("base", "finetune")
        )
        for i, pair in enumerate(pairs):
            for first, base, finetune in read_chunks(pair.base, pair.finetune):
                before[i, first : first + len(base)] = base
                after[i, first : first + len(finetune)] = finetune
        deltas = self._workspace.empty("deltas", size, self._options.torch_dtype)
        noises = [new_noise(pair) for pair in pairs]
        stored = subtract_batch(before, after, out=deltas, workspace=self._workspace, noises=noises)
        sums = [each.with_format_error(pair.finetune.rounding_error) for each, pair in zip(stored, pairs, strict=True)]
        return deltas, sums, [NoiseEdges.of(*each) for each in zip(pairs, noises, strict=True)]

    def _from_entries(self, step: Step) -> MatrixResult:
        noise = new_noise(step.pair)
        delta, sums = self._reader.read(step.pair, noise)
        return self._measured(step, delta, sums, NoiseEdges.of(step.pair, noise))

    def _from_factors(self, step: Step) -> MatrixResult | None:
        """For a finetune that is a LoRA on the base: nothing is solved; else None."""
        pair = step.pair
        found = low_rank_factors(pair)
        if found is None:
            return None
        left, right = found
        if not (torch.isfinite(left).all() and torch.isfinite(right).all()):
            return _not_finite(pair, "adapter")
        known = product_spectrum(left, right)
        sums = Sums()
        for first, base in read_rows(pair.base, 0, pair.shape[0]):
            sums += product_sums(base, left[first : first + len(base)], right, self._workspace)
        sums = replace(sums, energy=known.energy)
        outcome = Outcome.IDENTICAL if sums.is_zero else Outcome.MEASURED
        if not sums.is_finite:
            return _not_finite(pair, "base")
        if self._on_delta and not sums.is_zero:
            self._on_delta(step, left @ right)
        return self._with_figures(pair, sums, outcome, None if sums.is_zero else known, edges=NoiseEdges())

    def _measured(
        self, step: Step, delta: Tensor, sums: Sums, edges: NoiseEdges, known: Spectrum | None = None
    ) -> MatrixResult:
        """`known`: the spectrum, if it has been computed."""
        pair = step.pair
        if not sums.is_finite:
            side = "base" if not torch.isfinite(torch.tensor(sums.base_energy)) else "finetune"
            return _not_finite(pair, side)
        if sums.is_zero:
            return self._with_figures(pair, sums, Outcome.IDENTICAL, None, edges=edges)
        if self._on_delta:
            self._on_delta(step, delta)
        spectrum = known or self._spectrum(step, delta, sums, edges.edge)
        return self._with_figures(pair, sums, Outcome.MEASURED, spectrum, edges=edges)

    def _spectrum(self, step: Step, delta: Tensor, sums: Sums, edge: float) -> Spectrum:
        pair = step.pair
        solver = make_solver(
            step.solver, self._workspace, tolerance=self._options.tolerance, seed=zlib.crc32(pair.name.encode())
        )
        return measure_spectrum(
            delta, sums.energy, ranks=self._options.ranks, solver=solver, edge=edge, workspace=self._workspace
        )

    def _with_figures(
        self, pair: Pair, sums: Sums, outcome: Outcome, spectrum: Spectrum | None, *, edges: NoiseEdges
    ) -> MatrixResult:
        base_norm = sums.base_energy**0.5
        result = replace(
            _without_figures(pair, outcome),
            relative_norm=sums.energy**0.5 / base_norm if base_norm > 0 else None,
            mean_abs=sums.absolute / sums.entries,
            frobenius=sums.energy**0.5,
            base_frobenius=base_norm,
            rounding_floor=sums.rounding_floor,
            losses=tuple(
                Loss.from_energy(
                    rank, lost=spectrum.lost(rank) if spectrum else 0.0, total=sums.energy, entries=sums.entries
                )
                for rank in self._options.ranks
            ),
        )
        return self._with_spectrum(result, spectrum, edges) if spectrum else result

    def _with_spectrum(self, result: MatrixResult, spectrum: Spectrum, edges: NoiseEdges) -> MatrixResult:
        signal_rank = spectrum.signal_rank(edges.edge)
        made = edges.base_error**2 * result.base_energy
        kept = self._detail.values_of(signal_rank, result.max_rank, self._options.ranks)
        return replace(
            result,
            stable_rank=spectrum.stable_rank,
            effective_rank=spectrum.effective_rank,
            signal_rank=signal_rank,
            signal_share=None if signal_rank is None else 1 - spectrum.lost(signal_rank) / spectrum.energy,
            noise_edge=edges.edge,
            base_rounding=made / spectrum.energy if edges.is_in(spectrum, made) else None,
            base_noise_edge=edges.with_base if edges.is_in(spectrum, made) else None,
            solver=spectrum.solver,
            singular_values=tuple(float(f"{value:.{DIGITS - 1}e}") for value in spectrum.values[:kept]),
            curve=tuple((rank, round(kept, 7)) for rank, kept in spectrum.curve(self._detail.points)),
        )


def _group_size(step: Step) -> int:
    """How many matrices of this kind are measured at once."""
    return batch_size(*step.pair.shape) if step.solver == "exact" else 1


def group_small_matrices(steps: Sequence[StepT]) -> list[tuple[StepT, ...]]:
    """Groups small matrices of one kind, that are measured together; a larger matrix is a group by itself.

    The order is nearly that of `steps`: a group has the position of its last member.
    """
    groups: list[tuple[StepT, ...]] = []
    waiting: dict[object, list[StepT]] = {}
    for step in steps:
        pair = step.pair
        size = _group_size(step)
        members = waiting.setdefault((pair.shape, pair.base.dtype, pair.finetune.dtype, size), [])
        members.append(step)
        if len(members) >= size:
            groups.append(tuple(members))
            members.clear()
    return [*groups, *(tuple(members) for members in waiting.values() if members)]


def _not_finite(pair: Pair, side: str) -> MatrixResult:
    return _without_figures(pair, Outcome.NOT_FINITE, f"the {side} contains NaN or Inf, so the loss is undefined")


def _without_figures(pair: Pair, outcome: Outcome, reason: str | None = None) -> MatrixResult:
    return MatrixResult(
        name=pair.name,
        layer=pair.layer,
        module=pair.module,
        shape=pair.shape,
        outcome=outcome,
        dtype=pair.dtype,
        max_rank=min(pair.shape),
        reason=reason,
    )
