"""What a run found out: frozen dataclasses of plain numbers, JSON in and out, totals by addition.

Nothing here knows a tensor. Ratios are computed late: a total adds the energies of its matrices and divides
once; percentages are never averaged.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any, Self, TypeVar

from deltarank.errors import ResultsError
from deltarank.results.codec import check_fields
from deltarank.results.matrix import (
    FORMAT_VERSION,
    AuditRow,
    Loss,
    MatrixResult,
    Outcome,
    Reference,
    Skipped,
    Totals,
    Verdict,
    VerdictKind,
)
from deltarank.results.outputs import Outputs

_T = TypeVar("_T")

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
