"""The rank-r deltas of all matrices, from one decomposition that serves every rank.

The leading columns of the best factors are the best factors of every smaller rank (Eckart and Young 1936). So each
matrix is decomposed once, at the largest rank, and a smaller rank reads the front of the same file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from deltarank.adapters import own_copy, write_factors
from deltarank.checkpoints import Pair
from deltarank.errors import JobError
from deltarank.models import Edit, read_piece
from deltarank.results import Energy, Norm, Outcome
from deltarank.runtime import (
    TENSOR_FAILURES,
    DeltaReader,
    ProgressListener,
    SolverOptions,
    Step,
    TimeEstimate,
    failure_outcome,
    matrix_pass,
    planned_seconds,
)
from deltarank.spectra import factorise
from deltarank.tensor_names import EXPERT, kind_of_tensor

_BYTES_PER_NUMBER = torch.float32.itemsize

FactorFile = Callable[[str], Path]
"""The file for the factors of a matrix, by the name of the matrix."""


@dataclass(frozen=True)
class MatrixDecomposition:
    """One matrix of D. If it was measured, its factors are in a file.

    values           the leading singular values
    energy           ||D||^2
    lost             ||D - B A||^2, what the factors leave of it
    """

    matrix: str
    outcome: Outcome
    values: tuple[Norm, ...] = ()
    energy: Energy = 0.0
    lost: Energy = 0.0
    reason: str | None = None

    @property
    def rank(self) -> int:
        return len(self.values)

    @property
    def has_factors(self) -> bool:
        return self.outcome is Outcome.MEASURED

    def lost_at(self, rank: int) -> float:
        """||D - D_r||^2: what is lost at the largest rank, and the energies of the values that r leaves out."""
        return self.lost + math.fsum(value * value for value in self.values[rank:])

    def check(self) -> None:
        """Raises JobError (slug "cannot-decompose") if it failed: every candidate would lack this matrix."""
        if self.outcome not in (Outcome.MEASURED, Outcome.IDENTICAL):
            raise JobError(
                f"Cannot decompose the change of {self.matrix!a}: {self.reason}.",
                cure="Run `deltarank compare` on the two models: it reports the state of every matrix.",
                slug="cannot-decompose",
            )


@dataclass(frozen=True)
class Decomposed:
    """A decomposition, and its factors in float32 as they are to be written; None if it has none."""

    result: MatrixDecomposition
    factors: tuple[Tensor, Tensor] | None = None

    def write(self, path: Path) -> None:
        """Writes the factors, if there are any. Raises OSError if they cannot be written."""
        if self.factors is not None:
            write_factors(path, *self.factors)


class MatrixDecomposer:
    """Decomposes one matrix after another, in one thread.

    Args:
        rank: the largest rank that is needed.
    """

    def __init__(self, options: SolverOptions, rank: int) -> None:
        self._reader = DeltaReader(options)
        self._rank = rank

    def results(self, steps: Sequence[Step]) -> list[Decomposed]:
        return [self._decompose(step.pair) for step in steps]

    def _decompose(self, pair: Pair) -> Decomposed:
        """A matrix that fails is a result too."""
        try:
            delta, sums = self._reader.read(pair)
            if not sums.is_finite:
                return Decomposed(
                    MatrixDecomposition(pair.name, Outcome.NOT_FINITE, reason=Outcome.NOT_FINITE.sentence)
                )
            if sums.is_zero:
                return Decomposed(MatrixDecomposition(pair.name, Outcome.IDENTICAL))
            factors = factorise(delta, self._rank, energy=sums.energy, workspace=self._reader.workspace)
        except TENSOR_FAILURES as error:
            outcome, reason = failure_outcome(error)
            return Decomposed(MatrixDecomposition(pair.name, outcome, reason=reason))
        result = MatrixDecomposition(pair.name, Outcome.MEASURED, factors.values, sums.energy, factors.lost)
        return Decomposed(result, (own_copy(factors.left.T.float()), own_copy(factors.right.float())))


def decompose(
    steps: Sequence[Step],
    options: SolverOptions,
    rank: int,
    factor_file: FactorFile,
    *,
    progress: ProgressListener,
    estimate: TimeEstimate,
) -> Generator[MatrixDecomposition, None, None]:
    """Decomposes the matrices of the steps, at this rank, one after another, and writes their factors.

    Raises:
        JobError: (slug "cannot-decompose") one of them failed.
    """
    results = matrix_pass(
        [[step] for step in steps],
        partial(MatrixDecomposer, options, rank),
        seconds=planned_seconds,
        workers=1,  # a small part of the job's time; a second matrix at a time would only raise its memory
        device=options.torch_device,
        progress=progress,
        estimate=estimate,
    )
    with closing(results):
        for found in results:
            found.result.check()
            found.write(factor_file(found.result.matrix))
            yield found.result


@dataclass(frozen=True)
class LowRankDeltas:
    """D_r of every matrix that a LoRA has factors for, at any rank up to the largest.

    pairs            the matrices, by name
    decompositions   the same names
    """

    pairs: Mapping[str, Pair]
    decompositions: Mapping[str, MatrixDecomposition]
    factor_file: FactorFile
    device: torch.device

    def base_edits(self, rank: int) -> list[Edit]:
        """Turns W0 into W0 + D_r, in the base's files."""
        return [Edit(self.pairs[name].base, self._adder(name, rank)) for name in self.pairs if self._is_changed(name)]

    def finetune_edits(self, rank: int, names: Sequence[str]) -> list[Edit]:
        """Turns W into W0 + D_r in these matrices, in the finetune's files."""
        return [
            Edit(self.pairs[name].finetune, self._truncater(name, rank)) for name in names if self._is_changed(name)
        ]

    def lost(self, rank: int, names: Sequence[str]) -> tuple[float, float]:
        """(||D - D_r||^2, ||D||^2) over these matrices."""
        rows = [self.decompositions[name] for name in names]
        return math.fsum(row.lost_at(rank) for row in rows), math.fsum(row.energy for row in rows)

    def _is_changed(self, name: str) -> bool:
        return self.decompositions[name].has_factors

    def _adder(self, name: str, rank: int) -> Callable[[Tensor], Tensor]:
        return lambda base: base.addmm_(*self._factors(name, rank))

    def _truncater(self, name: str, rank: int) -> Callable[[Tensor], Tensor]:
        add = self._adder(name, rank)
        return lambda _: add(read_piece(self.pairs[name].base, self.device))

    def _factors(self, name: str, rank: int) -> tuple[Tensor, Tensor]:
        """(rows, r) and (r, columns), whose product is D_r; all there are if r is larger."""
        rows, columns = self.pairs[name].shape
        stored_rank = self.decompositions[name].rank
        rank = min(rank, stored_rank)
        with self.factor_file(name).open("rb", buffering=0) as file:
            left = _read_floats(file, 0, (rank, rows))
            right = _read_floats(file, stored_rank * rows * _BYTES_PER_NUMBER, (rank, columns))
        return left.to(self.device).T, right.to(self.device)


def lora_matrices(pairs: Sequence[Pair]) -> tuple[Pair, ...]:
    """The matrices that a served LoRA has factors for: no router, no output head, no embedding."""
    return tuple(pair for pair in pairs if kind_of_tensor(pair.base.tensor) in (None, EXPERT))


def factor_bytes(pairs: Sequence[Pair], rank: int) -> int:
    """Bytes of all factor files."""
    return sum(min(rank, *pair.shape) * sum(pair.shape) * _BYTES_PER_NUMBER for pair in pairs)


def _read_floats(file: IO[bytes], start: int, shape: tuple[int, int]) -> Tensor:
    raw = torch.empty(math.prod(shape) * _BYTES_PER_NUMBER, dtype=torch.uint8)
    view, done = raw.numpy().data, 0
    file.seek(start)
    while done < len(view):
        got = file.readinto(view[done:])  # type: ignore[attr-defined]
        if not got:
            raise OSError(f"{file.name} became shorter since it was written")
        done += got
    return raw.view(torch.float32).view(shape)
