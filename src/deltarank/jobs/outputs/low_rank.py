"""One decomposition that serves every rank: the factors of all matrices, kept as files while a job goes on.

The leading columns of the best factors are the best factors of every smaller rank (Eckart and Young 1936), so the
largest rank asked for is found once, and a smaller one reads the front of the same file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deltarank.adapters import write_factors
from deltarank.checkpoints import Pair
from deltarank.errors import JobError
from deltarank.models import Edit, read_piece
from deltarank.results import Energy, Norm, Outcome
from deltarank.runtime import TENSOR_FAILURES, DeltaReader, SolverOptions, Step, failure_outcome
from deltarank.servers import kind_of_tensor
from deltarank.spectra import Factors, Workspace, factorise

_NUMBER = torch.float32.itemsize


@dataclass(frozen=True)
class Decomposed:
    """One matrix. Its factors lie in a file if it was measured.

    values           the leading singular values of D
    energy           ||D||^2; `lost` what the factors leave of it
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

    def lost_at(self, rank: int) -> float:
        """||D - D_r||^2: what is lost at the largest rank, and the energies of the values that are cut off."""
        return self.lost + math.fsum(value * value for value in self.values[rank:])


class Decomposer:
    """Decomposes one matrix after another, in one thread.

    Args:
        rank: the largest that was asked for.
        place: where the factors of a matrix, by name, are kept.
    """

    def __init__(self, settings: SolverOptions, rank: int, place: Callable[[str], Path]) -> None:
        self._reader, self._workspace = DeltaReader(settings), Workspace(settings.torch_device)
        self._rank, self._place = rank, place

    def results(self, steps: Sequence[Step]) -> list[Decomposed]:
        return [self.result(step) for step in steps]

    def result(self, step: Step) -> Decomposed:
        """A matrix that fails is a result too.

        Raises:
            OSError: the factors cannot be kept.
        """
        name = step.pair.name
        try:
            delta, sums = self._reader.read(step.pair)
            if not sums.is_finite:
                return Decomposed(name, Outcome.NOT_FINITE, reason=Outcome.NOT_FINITE.sentence)
            if sums.is_zero:
                return Decomposed(name, Outcome.IDENTICAL)
            found = factorise(delta, self._rank, energy=sums.energy, workspace=self._workspace)
        except TENSOR_FAILURES as error:
            outcome, reason = failure_outcome(error)
            return Decomposed(name, outcome, reason=reason)
        return self._kept(name, found, sums.energy)

    def _kept(self, name: str, found: Factors, energy: float) -> Decomposed:
        write_factors(self._place(name), found.left.T.float(), found.right.float())
        return Decomposed(name, Outcome.MEASURED, found.values, energy, found.lost)


@dataclass(frozen=True)
class LowRank:
    """The decompositions of all matrices of a pair, by name."""

    pairs: Mapping[str, Pair]
    found: Mapping[str, Decomposed]
    place: Callable[[str], Path]
    device: torch.device

    def factors(self, name: str, rank: int) -> tuple[Tensor, Tensor] | None:
        """(rows, r) and (r, columns), whose product is D_r; None where D is zero. A rank beyond all is all."""
        known = self.found[name]
        if known.outcome is not Outcome.MEASURED:
            return None
        rows, columns = self.pairs[name].shape
        rank = min(rank, known.rank)
        with self.place(name).open("rb", buffering=0) as file:
            left = _floats(file, 0, (rank, rows))
            right = _floats(file, known.rank * rows * _NUMBER, (rank, columns))
        return left.to(self.device).T, right.to(self.device)

    def edits(self, rank: int, names: Sequence[str] | None = None) -> list[Edit]:
        """W0 becomes W0 + D_r, in the base's files."""
        chosen = self.found if names is None else names
        return [Edit(self.pairs[name].base, self._added(name, rank)) for name in chosen if self._moves(name)]

    def replacements(self, rank: int, names: Sequence[str]) -> list[Edit]:
        """W becomes W0 + D_r, in the finetune's files."""
        return [Edit(self.pairs[name].finetune, self._replaced(name, rank)) for name in names if self._moves(name)]

    def lost(self, rank: int, names: Sequence[str]) -> tuple[float, float]:
        """(||D - D_r||^2, ||D||^2) over these matrices."""
        rows = [self.found[name] for name in names]
        return math.fsum(row.lost_at(rank) for row in rows), math.fsum(row.energy for row in rows)

    def _moves(self, name: str) -> bool:
        return self.found[name].outcome is Outcome.MEASURED

    def _added(self, name: str, rank: int) -> Callable[[Tensor], Tensor]:
        def change(base: Tensor) -> Tensor:
            left, right = self.factors(name, rank) or (None, None)
            assert left is not None
            assert right is not None
            return base.addmm_(left, right)

        return change

    def _replaced(self, name: str, rank: int) -> Callable[[Tensor], Tensor]:
        added = self._added(name, rank)
        return lambda _: added(read_piece(self.pairs[name].base, self.device))


def carried(pairs: Sequence[Pair]) -> tuple[Pair, ...]:
    """The matrices that a served LoRA has factors for: no router, no output head, no embedding."""
    return tuple(pair for pair in pairs if kind_of_tensor(pair.base.tensor) in (None, "expert"))


def refuse_failures(found: Mapping[str, Decomposed]) -> None:
    """Raises JobError (slug "cannot-decompose") if a matrix could not be decomposed: a candidate would lack it."""
    bad = [each for each in found.values() if each.outcome not in (Outcome.MEASURED, Outcome.IDENTICAL)]
    if bad:
        raise JobError(
            f"{bad[0].matrix!a} has no rank-r delta: {bad[0].reason}.",
            cure="Run `deltarank compare` on the two: it says what is wrong with each matrix.",
            slug="cannot-decompose",
        )


def nbytes_of(pairs: Sequence[Pair], rank: int) -> int:
    """Bytes of all factor files."""
    return sum(min(rank, *pair.shape) * sum(pair.shape) * _NUMBER for pair in pairs)


def _floats(file: Any, start: int, shape: tuple[int, int]) -> Tensor:
    raw = torch.empty(math.prod(shape) * _NUMBER, dtype=torch.uint8)
    view, done = raw.numpy().data, 0
    file.seek(start)
    while done < len(view):
        got = file.readinto(view[done:])
        if not got:
            raise OSError(f"{file.name} became shorter since it was written")
        done += got
    return raw.view(torch.float32).view(shape)
