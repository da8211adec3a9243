"""What a run found out: frozen dataclasses of plain numbers, JSON in and out, totals by addition.

Nothing here knows a tensor. Ratios are computed late: a total adds the energies of its matrices and divides
once; percentages are never averaged.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any, Self, TypeVar

from deltarank._typed import check_fields
from deltarank.behaviour_results import Outputs
from deltarank.errors import ResultsError

_T = TypeVar("_T")

FORMAT_VERSION = 1
# 1: the first format (2026-11).

LEGAL_RANKS: tuple[int, ...] = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""LoRA ranks that vLLM accepts (its `max_lora_rank`, read 2026-11)."""

DEFAULT_RANKS: tuple[int, ...] = (8, 16, 32, 64, 128, 256, 320, 512)


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


_NO_MATRICES = '\n "matrices": []'


@dataclass(frozen=True)
class Results:
    """One run, whole: `to_json`/`from_json` and `save`/`load` give back an equal object.

    In a notebook it shows its verdict and a table; `rows()` is a plain list that pandas and polars take.
    """

    base: Reference
    finetune: Reference
    settings: Mapping[str, Any]
    matrices: tuple[MatrixResult, ...]
    skipped: tuple[Skipped, ...]
    verdict: Verdict
    tool_version: str
    created: str
    notes: tuple[str, ...] = ()
    audit: tuple[AuditRow, ...] = ()
    outputs: Outputs | None = None
    format_version: int = FORMAT_VERSION

    @cached_property
    def totals(self) -> Totals:
        return Totals.of(self.matrices)

    @property
    def ranks(self) -> tuple[int, ...]:
        return tuple(self.settings["ranks"])

    @property
    def measured(self) -> tuple[MatrixResult, ...]:
        """The matrices that have losses, identical ones among them."""
        return tuple(m for m in self.matrices if m.has_losses)

    def rows(self) -> list[dict[str, Any]]:
        """One flat record a matrix and rank: `pandas.DataFrame(results.rows())`."""
        return [
            {
                "name": m.name,
                "layer": m.layer,
                "module": m.module,
                "rows": m.shape[0],
                "columns": m.shape[-1],
                "outcome": m.outcome.value,
                "relative_norm": m.relative_norm,
                "stable_rank": m.stable_rank,
                "effective_rank": m.effective_rank,
                "signal_rank": m.signal_rank,
                "rounding_floor": m.rounding_floor,
                **dataclasses.asdict(loss),
            }
            for m in self.measured
            for loss in m.losses
        ]

    def to_plain(self) -> dict[str, Any]:
        """As dictionaries, lists and numbers, in the order of the contract."""
        return self._to_plain(self.totals)

    def _to_plain(self, totals: Totals) -> dict[str, Any]:
        return {
            "format_version": self.format_version,
            "tool_version": self.tool_version,
            "created": self.created,
            "base": _plain(self.base),
            "finetune": _plain(self.finetune),
            "settings": _plain(self.settings),
            "matrices": [matrix_to_plain(m) for m in self.matrices],
            "skipped": [_plain(s) for s in self.skipped],
            "totals": totals.to_plain(),
            "verdict": _plain(self.verdict),
            "notes": list(self.notes),
            "audit": [_plain(row) for row in self.audit],
            "outputs": self.outputs.to_plain() if self.outputs is not None else None,
        }

    def to_json(self) -> str:
        """The contract as text, a matrix a line."""
        return "".join(self._json_parts())

    def _json_parts(self) -> Iterator[str]:
        """In parts, so that the file of 50,000 matrices is never whole in memory."""
        frame = json.dumps(replace(self, matrices=())._to_plain(self.totals), indent=1, allow_nan=False)
        before, after = frame.split(_NO_MATRICES)  # at that depth only there: a text has no new lines of its own
        yield before + _NO_MATRICES.rstrip("]")
        for number, matrix in enumerate(self.matrices):
            yield ("," if number else "") + "\n  " + json.dumps(matrix_to_plain(matrix), allow_nan=False)
        yield "\n ]" + after + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Reads what `to_json` wrote. Totals are added up again, never believed.

        Raises:
            ResultsError: not JSON, or not the JSON of a run, or of a format that this version does not know.
        """
        return cls.from_plain(_parse(text))

    @classmethod
    def from_plain(cls, data: Mapping[str, Any]) -> Self:
        version = data.get("format_version") if isinstance(data, Mapping) else None
        if version != FORMAT_VERSION:
            raise ResultsError(
                f"format_version is {version!r}; this deltarank reads {FORMAT_VERSION}.",
                cure="Run `deltarank compare` again, or install the deltarank that wrote the file.",
                slug="results-unreadable",
            )
        try:
            ranks = _checked_ranks(data["settings"]["ranks"])
            return _build(
                cls,
                data,
                base=_build(Reference, data["base"]),
                finetune=_build(Reference, data["finetune"]),
                settings=dict(data["settings"]),
                matrices=tuple(matrix_from_plain(m, ranks) for m in data["matrices"]),
                skipped=tuple(_skipped_from_plain(s) for s in data["skipped"]),
                verdict=_verdict_from_plain(data["verdict"]),
                notes=tuple(data.get("notes", ())),
                audit=tuple(_build(AuditRow, row) for row in data.get("audit", ())),
                outputs=Outputs.from_plain(data["outputs"]) if data.get("outputs") is not None else None,
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ResultsError(
                f"not the results of a deltarank run: {type(error).__name__}: {error}.",
                cure="Give the folder that `deltarank compare -o` wrote, or run it again.",
                slug="results-unreadable",
            ) from None

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes `path` whole or not at all: beside it first, then renamed."""
        target = Path(path)
        partial = target.with_name(target.name + ".partial")
        with partial.open("w", encoding="utf-8") as file:
            file.writelines(self._json_parts())
        partial.replace(target)
        return target

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Reads a results file, or the `results.json` of a run's folder.

        Raises:
            ResultsError: there is none, or it cannot be read.
        """
        source = Path(path)
        if source.is_dir():
            source = source / "results.json"
        try:
            text = source.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ResultsError(
                f"cannot read {source}: {getattr(error, 'strerror', None) or error}.",
                cure="Give the folder that `deltarank compare -o` wrote.",
                slug="results-unreadable",
            ) from None
        return cls.from_json(text)

    def __repr__(self) -> str:
        losses = ", ".join(f"rank {x.rank}: {x.energy_kept:.1%} kept" for x in self.totals.losses[:4])
        return (
            f"<Results {self.finetune.short_name} - {self.base.short_name}: "
            f"{len(self.measured)} matrices, {self.verdict.kind.value}; {losses}>"
        )

    def _repr_html_(self) -> str:
        from deltarank.report import notebook_html

        return notebook_html(self)


def _no_constant(word: str) -> float:
    raise ValueError(f"{word} is no number")


def _parse(text: str) -> Mapping[str, Any]:
    try:
        data = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ResultsError(
            f"not JSON: {error}.",
            cure="Give the results.json that `deltarank compare` wrote, or run it again.",
            slug="results-unreadable",
        ) from None
    return data if isinstance(data, Mapping) else {}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value.value if isinstance(value, StrEnum) else value


def _build(cls: type[_T], data: Mapping[str, Any], **special: Any) -> _T:
    """A dataclass from a dictionary; fields that a later version added are passed over.

    Raises:
        TypeError: a field is missing, or is not of its type.
    """
    known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    values = {**{k: v for k, v in data.items() if k in known}, **special}
    check_fields(cls, values)
    return cls(**values)


LARGEST_NORM = 1e150
"""Larger norms have no squares that can be added up; no weights are of that size."""


def _checked_ranks(ranks: Any) -> Sequence[int]:
    """Raises ValueError if they are not the ranks of a run: whole numbers from 1, in order, each once."""
    if not (isinstance(ranks, list) and ranks and all(type(r) is int and 0 < r < 2**31 for r in ranks)):
        raise ValueError("ranks are not whole numbers from 1")
    if sorted(set(ranks)) != ranks:
        raise ValueError("ranks are not in order, each once")
    return ranks


def _check_matrix(matrix: MatrixResult, ranks: Sequence[int]) -> None:
    """Raises ValueError where its numbers do not belong together."""
    name = ascii(matrix.name)[:100]
    if len(matrix.shape) != 2 or min(*matrix.shape, matrix.max_rank, matrix.layer or 0) < 0:
        raise ValueError(f"{name} is no matrix")
    if matrix.has_losses and [loss.rank for loss in matrix.losses] != list(ranks):
        raise ValueError(f"the losses of {name} are not those at the ranks of the run")
    for loss in matrix.losses:
        if loss.mse < 0 or not all(0 <= x <= 1 for x in (loss.cosine_distance, loss.relative_error, loss.energy_kept)):
            raise ValueError(f"a loss of {name} is more than all, or less than nothing")
    known = (matrix.frobenius, matrix.base_frobenius, matrix.rounding_floor, *matrix.singular_values)
    if not all(0 <= x <= LARGEST_NORM for x in known if x is not None):
        raise ValueError(f"a norm of {name} is negative, or beyond all measure")


def matrix_to_plain(matrix: MatrixResult) -> dict[str, Any]:
    return {
        **vars(matrix),
        "shape": list(matrix.shape),
        "outcome": matrix.outcome.value,
        "singular_values": list(matrix.singular_values),
        "losses": [dict(vars(loss)) for loss in matrix.losses],
        "curve": [list(point) for point in matrix.curve],
    }


def matrix_from_plain(data: Mapping[str, Any], ranks: Sequence[int]) -> MatrixResult:
    """A matrix of a run at these ranks.

    Raises:
        KeyError, TypeError, ValueError, AttributeError, OverflowError: it is none.
    """
    found = _build(
        MatrixResult,
        data,
        shape=tuple(data["shape"]),
        outcome=Outcome(data["outcome"]),
        singular_values=tuple(data["singular_values"]),
        losses=tuple(_build(Loss, loss) for loss in data["losses"]),
        curve=tuple((rank, float(kept)) for rank, kept in data.get("curve", ())),
    )
    _check_matrix(found, ranks)
    return found


def skipped_to_plain(skipped: Skipped) -> dict[str, Any]:
    plain: dict[str, Any] = _plain(skipped)
    return plain


def _skipped_from_plain(data: Mapping[str, Any]) -> Skipped:
    return _build(Skipped, data, outcome=Outcome(data["outcome"]), shape=tuple(data.get("shape", ())))


skipped_from_plain = _skipped_from_plain


def _verdict_from_plain(data: Mapping[str, Any]) -> Verdict:
    return _build(Verdict, data, kind=VerdictKind(data["kind"]), sentences=tuple(data["sentences"]))
