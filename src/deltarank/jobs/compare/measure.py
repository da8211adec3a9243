"""Where one matrix is measured: buffers that are used again, a pair read into them, a solver run on them."""

from __future__ import annotations

import time
import zlib
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from deltarank.adapters import is_adapted, low_rank_factors
from deltarank.checkpoints import Pair, SummedTensor, read_chunks, read_rows
from deltarank.errors import CheckpointError
from deltarank.jobs.compare.spectrum_detail import SpectrumDetail
from deltarank.results import AuditRow, Loss, MatrixResult, Outcome
from deltarank.runtime import SolverOptions, Step
from deltarank.spectra import (
    Spectrum,
    Sums,
    Workspace,
    audited,
    make_solver,
    measure_spectrum,
    measure_stack,
    noise_edge,
    product_spectrum,
    product_sums,
    stack_size,
    subtract,
    subtract_stack,
)

DIGITS = 8
"""Of a singular value in the results: float32 has seven."""


class MatrixMeasurer:
    """Measures one matrix after another, in one thread."""

    def __init__(self, settings: SolverOptions, *, matrices: int = 1) -> None:
        """`matrices`: how many the run has, in all."""
        self._settings = settings
        self._detail = SpectrumDetail.of_run(matrices, settings.ranks)
        self._workspace = Workspace(settings.torch_device)
        self._on_host = Workspace()

    def result(self, step: Step) -> MatrixResult:
        """A matrix that fails is a result too."""
        started = time.perf_counter()
        try:
            result = self._of_factors(step.pair) or self._measured(step, *self.load(step.pair))
        except CheckpointError as error:
            result = _blank(step.pair, Outcome.UNREADABLE, error.message)
        except (MemoryError, RuntimeError, ArithmeticError, ValueError) as error:
            reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            result = _blank(step.pair, Outcome.FAILED, reason[:300])
        return replace(result, seconds=round(time.perf_counter() - started, 4))

    def results(self, steps: Sequence[Step]) -> list[MatrixResult]:
        """Those of several matrices of one kind (`stacks`), at once if they are small.

        One small matrix alone goes the same way, so that its numbers do not depend on who its neighbours were.
        """
        if _most(steps[0]) == 1 or any(is_adapted(step.pair) for step in steps):
            return [self.result(step) for step in steps]
        started = time.perf_counter()
        try:
            found = self._stacked(steps)
        except (CheckpointError, MemoryError, RuntimeError, ArithmeticError, ValueError):
            return [self.result(step) for step in steps]  # to find out which of them it is
        seconds = round((time.perf_counter() - started) / len(steps), 6)
        return [replace(result, seconds=seconds) for result in found]

    def _stacked(self, steps: Sequence[Step]) -> list[MatrixResult]:
        deltas, sums = self._load_stack([step.pair for step in steps])
        for delta, each in zip(deltas, sums, strict=True):
            if not each.is_finite:
                delta.zero_()  # eigenvalues of the others are asked for in the same breath
        shape = steps[0].pair.shape
        spectra = measure_stack(
            deltas,
            [each.energy for each in sums],
            ranks=self._settings.ranks,
            edges=[noise_edge(each.rounding_energy, *shape) for each in sums],
            workspace=self._workspace,
        )
        return [self._measured(*each) for each in zip(steps, deltas, sums, spectra, strict=True)]

    def _load_stack(self, pairs: Sequence[Pair]) -> tuple[Tensor, list[Sums]]:
        """As `load`: (n, rows, columns)."""
        size = (len(pairs), *pairs[0].shape)
        before, after = (self._on_host.lend(side, size, getattr(pairs[0], side).dtype) for side in ("base", "finetune"))
        for i, pair in enumerate(pairs):
            for first, base, finetune in read_chunks(pair.base, pair.finetune):
                before[i, first : first + len(base)] = base
                after[i, first : first + len(finetune)] = finetune
        deltas = self._workspace.lend("deltas", size, self._settings.torch_dtype)
        sums = subtract_stack(before, after, out=deltas, workspace=self._workspace)
        return deltas, [each.coarser(pair.finetune.error) for each, pair in zip(sums, pairs, strict=True)]

    def _of_factors(self, pair: Pair) -> MatrixResult | None:
        """Of a delta that is stored as a product: nothing is solved, and the matrix is never formed."""
        found = low_rank_factors(pair)
        if found is None:
            return None
        left, right = found
        if not (torch.isfinite(left).all() and torch.isfinite(right).all()):
            return _blank(pair, Outcome.NOT_FINITE, "the adapter holds NaN or Inf, so no loss can be stated")
        known = product_spectrum(left, right)
        sums = Sums()
        for first, base in read_rows(pair.base, 0, pair.shape[0]):
            sums += product_sums(base, left[first : first + len(base)], right, self._workspace)
        sums = replace(sums, energy=known.energy)
        outcome = Outcome.IDENTICAL if sums.is_zero else Outcome.MEASURED
        if not sums.is_finite:
            return _blank(pair, Outcome.NOT_FINITE, "the base holds NaN or Inf, so no loss can be stated")
        return self._filled(pair, sums, outcome, None if sums.is_zero else known)

    def sums(self, pair: SummedTensor | Pair) -> Sums:
        """The sums of a pair that is not kept: needs no memory to speak of.

        Raises:
            CheckpointError: it cannot be read.
        """
        total = Sums()
        for _, base, finetune in read_chunks(pair.base, pair.finetune):
            out = self._workspace.lend("chunk", tuple(finetune.shape), self._settings.torch_dtype)
            total += subtract(base, finetune, out=out, workspace=self._workspace)
        return total.coarser(pair.finetune.error)

    def audit(self, step: Step, result: MatrixResult) -> AuditRow:
        """The rank at which the result is furthest from a full SVD in float64."""
        delta, sums = MatrixMeasurer(replace(self._settings, dtype="float64", device="cpu")).load(step.pair)
        energies = audited(delta).square()
        rows = [_audit_row(result, loss, energies, sums.energy) for loss in result.losses]
        return max(rows, key=lambda row: row.deviation)

    def load(self, pair: Pair) -> tuple[Tensor, Sums]:
        """Reads a pair as its delta, into a buffer that the next one overwrites."""
        delta = self._workspace.lend("delta", pair.shape, self._settings.torch_dtype)
        total = Sums()
        for first, base, finetune in read_chunks(pair.base, pair.finetune):
            out = delta[first : first + len(finetune)]
            total += subtract(base, finetune, out=out, workspace=self._workspace)
        return delta, total.coarser(pair.finetune.error)

    def _measured(self, step: Step, delta: Tensor, sums: Sums, known: Spectrum | None = None) -> MatrixResult:
        """`known`: what was found of it already."""
        pair = step.pair
        if not sums.is_finite:
            side = "base" if not torch.isfinite(torch.tensor(sums.base_energy)) else "finetune"
            return _blank(pair, Outcome.NOT_FINITE, f"the {side} holds NaN or Inf, so no loss can be stated")
        if sums.is_zero:
            return self._filled(pair, sums, Outcome.IDENTICAL, None)
        spectrum = known or self._spectrum(step, delta, sums)
        return self._filled(pair, sums, Outcome.MEASURED, spectrum)

    def _spectrum(self, step: Step, delta: Tensor, sums: Sums) -> Spectrum:
        pair = step.pair
        solver = make_solver(
            step.solver, self._workspace, tolerance=self._settings.tolerance, seed=zlib.crc32(pair.name.encode())
        )
        edge = noise_edge(sums.rounding_energy, *pair.shape)
        return measure_spectrum(
            delta, sums.energy, ranks=self._settings.ranks, solver=solver, edge=edge, workspace=self._workspace
        )

    def _filled(self, pair: Pair, sums: Sums, outcome: Outcome, spectrum: Spectrum | None) -> MatrixResult:
        base_norm = sums.base_energy**0.5
        result = replace(
            _blank(pair, outcome),
            relative_norm=sums.energy**0.5 / base_norm if base_norm > 0 else None,
            mean_abs=sums.absolute / sums.entries,
            frobenius=sums.energy**0.5,
            base_frobenius=base_norm,
            rounding_floor=sums.rounding_floor,
            losses=tuple(
                Loss.from_energy(
                    rank, lost=spectrum.lost(rank) if spectrum else 0.0, total=sums.energy, entries=sums.entries
                )
                for rank in self._settings.ranks
            ),
        )
        return self._with_spectrum(result, sums, spectrum) if spectrum else result

    def _with_spectrum(self, result: MatrixResult, sums: Sums, spectrum: Spectrum) -> MatrixResult:
        edge = noise_edge(sums.rounding_energy, result.shape[0], result.shape[1])
        signal_rank = spectrum.signal_rank(edge)
        kept = self._detail.values_of(signal_rank, result.max_rank, self._settings.ranks)
        return replace(
            result,
            stable_rank=spectrum.stable_rank,
            effective_rank=spectrum.effective_rank,
            signal_rank=signal_rank,
            noise_edge=edge,
            solver=spectrum.solver,
            singular_values=tuple(float(f"{value:.{DIGITS - 1}e}") for value in spectrum.values[:kept]),
            curve=tuple((rank, round(kept, 7)) for rank, kept in spectrum.curve(self._detail.points)),
        )


def _most(step: Step) -> int:
    """How many like it are measured at once."""
    return stack_size(*step.pair.shape) if step.solver == "exact" else 1


def stacks(steps: Sequence[Step]) -> list[tuple[Step, ...]]:
    """Small matrices of one kind together, as many as are measured at once; each larger one by itself.

    Nearly in the order given: a stack goes where its last member stands.
    """
    groups: list[tuple[Step, ...]] = []
    waiting: dict[object, list[Step]] = {}
    for step in steps:
        pair = step.pair
        most = _most(step)
        members = waiting.setdefault((pair.shape, pair.base.dtype, pair.finetune.dtype, most), [])
        members.append(step)
        if len(members) >= most:
            groups.append(tuple(members))
            members.clear()
    return [*groups, *(tuple(members) for members in waiting.values() if members)]


def _blank(pair: Pair, outcome: Outcome, reason: str | None = None) -> MatrixResult:
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


def _audit_row(result: MatrixResult, loss: Loss, energies: Tensor, energy: float) -> AuditRow:
    tail = float(energies.flip(0).cumsum(0).flip(0)[loss.rank]) if loss.rank < len(energies) else 0.0
    truth = Loss.from_energy(loss.rank, lost=tail, total=energy, entries=result.entries)
    return AuditRow(result.name, loss.rank, loss.cosine_distance, truth.cosine_distance)
