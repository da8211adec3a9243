"""What was measured of one matrix, and sums over several: plain numbers.

Ratios are computed late: a total adds the energies of its matrices and divides once. Percentages are never averaged.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self

FORMAT_VERSION = 1
# 1: the first format (2026-11).

SERVABLE_RANKS: tuple[int, ...] = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""LoRA ranks that vLLM accepts (its `max_lora_rank`, read 2026-11)."""

DEFAULT_RANKS: tuple[int, ...] = SERVABLE_RANKS[1:]
"""The ranks that are measured by default: those that every server accepts."""

PREFERRED_RANK = 64
"""What hosts of many adapters use: the rank that a headline is about."""


SMALL_SIDE = 1024


def headline_rank(ranks: Iterable[int], largest_side: int) -> int:
    """The asked rank nearest to 64; where no matrix has a side of 1024, to a thirty-second of the largest.

    At rank 64 a toy with sides of 256 loses next to nothing, and its headline would say so.
    """
    wished = PREFERRED_RANK if largest_side >= SMALL_SIDE else max(largest_side / 32, 1)
    return min(ranks, key=lambda rank: abs(math.log2(rank / wished)))


class Outcome(StrEnum):
    """What became of a tensor. Each member carries the sentence that a user reads."""

    MEASURED = "measured"
    IDENTICAL = "identical"
    NOT_FINITE = "not_finite"
    UNREADABLE = "unreadable"
    FAILED = "failed"
    NOT_A_MATRIX = "not_a_matrix"
    EMBEDDING = "embedding"
    EXCLUDED = "excluded"
    SHAPE_DIFFERS = "shape_differs"
    ONLY_IN_BASE = "only_in_base"
    ONLY_IN_FINETUNE = "only_in_finetune"
    TIED = "tied"
    EXTRA_ROWS = "extra_rows"
    NOT_FLOATING = "not_floating"

    @property
    def sentence(self) -> str:
        return _SENTENCES[self]


_SENTENCES: dict[Outcome, str] = {
    Outcome.MEASURED: "measured",
    Outcome.IDENTICAL: "the two checkpoints hold the same numbers here: nothing to lose",
    Outcome.NOT_FINITE: "holds NaN or Inf, so no loss can be stated",
    Outcome.UNREADABLE: "could not be read",
    Outcome.FAILED: "could not be measured",
    Outcome.NOT_A_MATRIX: "a vector or scalar (a norm or a bias): a LoRA has no place for it",
    Outcome.EMBEDDING: "an embedding or the output head: left out unless included by name",
    Outcome.EXCLUDED: "left out by --include or --exclude, not read",
    Outcome.SHAPE_DIFFERS: "the shapes differ, so there is no difference to take",
    Outcome.ONLY_IN_BASE: "only the base has it",
    Outcome.ONLY_IN_FINETUNE: "only the finetune has it",
    Outcome.TIED: "tied to the embedding in one checkpoint and stored apart in the other",
    Outcome.EXTRA_ROWS: "rows that only one vocabulary has",
    Outcome.NOT_FLOATING: "stored in a type that holds no plain weights",
}


@dataclass(frozen=True)
class Loss:
    """What the rank-r delta D_r loses of the delta D. All four figures follow from `energy_kept`.

    rank             r, the rank that was asked for
    mse              ||D - D_r||^2 / (rows * columns)
    cosine_distance  1 - cos(D, D_r) = 1 - sqrt(energy_kept)
    relative_error   ||D - D_r|| / ||D|| = sqrt(1 - energy_kept)
    energy_kept      ||D_r||^2 / ||D||^2 (Eckart and Young 1936)
    """

    rank: int
    mse: float
    cosine_distance: float
    relative_error: float
    energy_kept: float

    @classmethod
    def from_energy(cls, rank: int, *, lost: float, total: float, entries: int) -> Self:
        """From the energy lost, ||D - D_r||^2, which is known without cancellation where little is lost."""
        if total <= 0:
            return cls(rank, 0.0, 0.0, 0.0, 1.0)
        share = min(max(lost / total, 0.0), 1.0)
        kept = 1.0 - share
        # 1 - sqrt(1 - x), written so that a loss of 1e-12 keeps its digits.
        return cls(rank, lost / entries, share / (1.0 + math.sqrt(kept)), math.sqrt(share), kept)

    @property
    def energy_lost(self) -> float:
        """1 - energy_kept, from the figure that does not cancel."""
        return self.relative_error**2


@dataclass(frozen=True)
class MatrixResult:
    """One weight matrix. Norms are Frobenius norms; ranks count singular values of D.

    Figures that the solver could not know are None: a top-r solver sees no tail, so `effective_rank` is None,
    and `signal_rank` is None when every value that it saw stands above the noise edge.
    """

    name: str
    layer: int | None
    module: str
    shape: tuple[int, ...]
    outcome: Outcome
    dtype: str
    max_rank: int
    relative_norm: float | None = None
    mean_abs: float | None = None
    frobenius: float | None = None
    base_frobenius: float | None = None
    stable_rank: float | None = None
    effective_rank: float | None = None
    signal_rank: int | None = None
    rounding_floor: float | None = None
    noise_edge: float | None = None
    solver: str | None = None
    singular_values: tuple[float, ...] = ()
    losses: tuple[Loss, ...] = ()
    curve: tuple[tuple[int, float], ...] = ()
    reason: str | None = None
    seconds: float | None = None

    @property
    def entries(self) -> int:
        return math.prod(self.shape)

    @property
    def energy(self) -> float:
        """||D||^2."""
        return (self.frobenius or 0.0) ** 2

    @property
    def base_energy(self) -> float:
        """||W0||^2."""
        return (self.base_frobenius or 0.0) ** 2

    @property
    def has_losses(self) -> bool:
        return self.outcome in (Outcome.MEASURED, Outcome.IDENTICAL)

    def loss(self, rank: int) -> Loss:
        """The loss at one of the asked ranks.

        Raises:
            KeyError: this rank was not asked for.
        """
        for loss in self.losses:
            if loss.rank == rank:
                return loss
        raise KeyError(f"rank {rank} was not measured; measured: {[x.rank for x in self.losses]}")


@dataclass(frozen=True)
class Skipped:
    """A tensor that was not measured, why, and how much of the whole change it holds where that is known.

    energy           ||D||^2 of the part that both checkpoints have; None if it was not read
    share            energy / (energy of everything that both checkpoints have); None if not read
    """

    name: str
    outcome: Outcome
    reason: str
    shape: tuple[int, ...] = ()
    energy: float | None = None
    share: float | None = None


@dataclass(frozen=True)
class Total:
    """Several matrices taken as one long vector of changes."""

    matrices: int
    entries: int
    energy: float
    base_energy: float
    rounding_energy: float | None
    losses: tuple[Loss, ...]

    @classmethod
    def of(cls, matrices: Iterable[MatrixResult]) -> Self:
        """Adds the energies of the matrices that have losses, and divides once."""
        rows = [m for m in matrices if m.has_losses]
        energy = math.fsum(m.energy for m in rows)
        floors = [m.rounding_floor * m.energy for m in rows if m.rounding_floor is not None]
        return cls(
            matrices=len(rows),
            entries=sum(m.entries for m in rows),
            energy=energy,
            base_energy=math.fsum(m.base_energy for m in rows),
            rounding_energy=math.fsum(floors) if len(floors) == len(rows) else None,
            losses=_add_losses(rows, energy),
        )

    @property
    def relative_norm(self) -> float | None:
        """||D|| / ||W0|| over all of them; None where no number can say it."""
        ratio = self.energy / self.base_energy if self.base_energy > 0 else math.inf
        return math.sqrt(ratio) if math.isfinite(ratio) else None

    @property
    def rounding_floor(self) -> float | None:
        """The share of the energy that storage rounding alone explains."""
        if self.rounding_energy is None or self.energy <= 0:
            return None
        return self.rounding_energy / self.energy

    def loss(self, rank: int) -> Loss:
        for loss in self.losses:
            if loss.rank == rank:
                return loss
        raise KeyError(f"rank {rank} was not measured; measured: {[x.rank for x in self.losses]}")


def _add_losses(rows: Sequence[MatrixResult], energy: float) -> tuple[Loss, ...]:
    if not rows:
        return ()
    entries = sum(m.entries for m in rows)
    lost: dict[int, list[float]] = {loss.rank: [] for loss in rows[0].losses}
    for row in rows:
        for loss in row.losses:
            lost[loss.rank].append(loss.energy_lost * row.energy)
    return tuple(
        Loss.from_energy(rank, lost=math.fsum(parts), total=energy, entries=entries) for rank, parts in lost.items()
    )


@dataclass(frozen=True)
class Totals:
    """The totals of a run: all measured matrices, and each module's."""

    whole: Total
    by_module: Mapping[str, Total]

    @classmethod
    def of(cls, matrices: Sequence[MatrixResult]) -> Self:
        modules: dict[str, list[MatrixResult]] = {}
        for matrix in matrices:
            modules.setdefault(matrix.module, []).append(matrix)
        return cls(Total.of(matrices), {name: Total.of(rows) for name, rows in modules.items()})

    @property
    def losses(self) -> tuple[Loss, ...]:
        return self.whole.losses

    def to_plain(self) -> dict[str, Any]:
        return {
            **_total_to_plain(self.whole),
            "by_module": {name: _total_to_plain(total) for name, total in self.by_module.items()},
        }


def _total_to_plain(total: Total) -> dict[str, Any]:
    return {
        "matrices": total.matrices,
        "entries": total.entries,
        "energy": total.energy,
        "relative_norm": total.relative_norm,
        "rounding_floor": total.rounding_floor,
        "losses": [dataclasses.asdict(loss) for loss in total.losses],
    }


class VerdictKind(StrEnum):
    """What kind of delta this is."""

    IDENTICAL = "identical"
    MERGED_LORA = "merged_lora"
    FULL = "full"
    ROUNDING = "rounding"
    UNRELATED = "unrelated"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Verdict:
    """The answer in plain words. `sentences[0]` is the headline."""

    kind: VerdictKind
    sentences: tuple[str, ...]
    signal_rank: int | None = None


@dataclass(frozen=True)
class Reference:
    """A checkpoint as it was named and as it was found. `files` maps a file name to its size in bytes."""

    ref: str
    revision: str | None = None
    files: Mapping[str, int] = field(default_factory=dict)

    @property
    def short_name(self) -> str:
        """The last part of the reference: what a reader calls the model."""
        tail = self.ref.rstrip("/").rsplit("/", 1)[-1]
        return tail.removesuffix(".safetensors") or self.ref


@dataclass(frozen=True)
class AuditRow:
    """One matrix measured again in float64 by a full SVD."""

    name: str
    rank: int
    cosine_distance: float
    cosine_distance_float64: float

    @property
    def deviation(self) -> float:
        return abs(self.cosine_distance - self.cosine_distance_float64)
