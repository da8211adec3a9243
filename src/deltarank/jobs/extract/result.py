"""What an extraction wrote and what it lost: plain numbers, in the adapter's folder as deltarank.json."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from deltarank.adapters import METADATA_FILE, Budget
from deltarank.errors import ResultsError
from deltarank.results import Loss, Outcome, Reference, check_fields
from deltarank.servers import get_server

FORMAT_VERSION = 1
# 1: the first format (2026-11).


@dataclass(frozen=True)
class AdapterMatrix:
    """One matrix that was extracted.

    name       of the tensor in the finetune; `path` is its module in the base
    rank       of its factors as written, zeros among them
    energy, base_energy
               ||D||^2 and ||W0||^2
    losses     what the best approximation of that rank loses, which `compare` promises: one, or none
    written    what the factors as written lose, rounding included
    reason     why there are no factors, or factors of zeros
    """

    name: str
    path: str
    layer: int | None
    module: str
    shape: tuple[int, ...]
    outcome: Outcome
    rank: int
    energy: float = 0.0
    base_energy: float = 0.0
    losses: tuple[Loss, ...] = ()
    written: Loss | None = None
    reason: str | None = None

    def to_plain(self) -> dict[str, Any]:
        plain = dataclasses.asdict(self)
        return {**plain, "shape": list(self.shape), "outcome": self.outcome.value, "losses": list(plain["losses"])}

    @classmethod
    def from_plain(cls, data: Mapping[str, Any]) -> Self:
        """Raises KeyError, TypeError or ValueError where it is none."""
        known = {field.name for field in dataclasses.fields(cls)}
        values = {
            **{key: value for key, value in data.items() if key in known},
            "shape": tuple(data["shape"]),
            "outcome": Outcome(data["outcome"]),
            "losses": tuple(Loss(**loss) for loss in data["losses"]),
            "written": Loss(**data["written"]) if data["written"] else None,
        }
        check_fields(cls, values)
        return cls(**values)


@dataclass(frozen=True)
class ExtractedAdapter:
    """An adapter that `extract` wrote to `folder`.

    dtype       of A and B: "bfloat16"
    settings    what was asked for, and the command where there was one
    identity    equal for two extractions only if inputs and settings are
    """

    folder: Path
    base: Reference
    finetune: Reference
    rank: int
    server: str
    dtype: str
    matrices: tuple[AdapterMatrix, ...]
    budget: Budget
    settings: Mapping[str, Any]
    notes: tuple[str, ...]
    tool_version: str
    created: str
    identity: str

    @property
    def sentence(self) -> str:
        """The budget in plain words."""
        return self.budget.sentence(get_server(self.server), self.rank)

    @property
    def modules(self) -> list[tuple[str, int, float]]:
        """(module, matrices, share of its energy that is kept as written), the largest change first."""
        rows: dict[str, list[tuple[float, float]]] = {}
        for m in self.matrices:
            if m.written is not None:
                rows.setdefault(m.module, []).append((m.energy, m.written.energy_lost * m.energy))
        sums = {name: [math.fsum(column) for column in zip(*row, strict=True)] for name, row in rows.items()}
        largest = sorted(sums, key=lambda name: -sums[name][0])
        return [
            (name, len(rows[name]), 1 - sums[name][1] / sums[name][0] if sums[name][0] > 0 else 1.0) for name in largest
        ]

    def promised(self, module: str) -> float:
        """The share of a module's energy that the best approximation of this rank keeps."""
        rows = [m for m in self.matrices if m.module == module and m.losses]
        energy = math.fsum(m.energy for m in rows)
        return 1 - math.fsum(m.losses[0].energy_lost * m.energy for m in rows) / energy if energy > 0 else 1.0

    def to_plain(self) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            "tool_version": self.tool_version,
            "created": self.created,
            "base": _reference(self.base),
            "finetune": _reference(self.finetune),
            "rank": self.rank,
            "server": self.server,
            "dtype": self.dtype,
            "sentence": self.sentence,
            "budget": self.budget.to_plain(),
            "matrices": [matrix.to_plain() for matrix in self.matrices],
            "settings": dict(self.settings),
            "notes": list(self.notes),
            "identity": self.identity,
        }

    def to_json(self) -> str:
        return json.dumps(self.to_plain(), indent=1, allow_nan=False) + "\n"

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        """Reads what an adapter says about itself.

        Raises:
            ResultsError: (slug "results-unreadable") there is no deltarank.json, or it cannot be read.
        """
        path = Path(folder) / METADATA_FILE
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data["format_version"] != FORMAT_VERSION:
                raise ValueError(f"format_version is {data['format_version']!r}, not {FORMAT_VERSION}")
            return cls._from_plain(Path(folder), data)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ResultsError(
                f"cannot read {path}: {getattr(error, 'strerror', None) or f'{type(error).__name__}: {error}'}.",
                cure="Give the folder that `deltarank extract -o` wrote.",
                slug="results-unreadable",
            ) from None

    @classmethod
    def _from_plain(cls, folder: Path, data: Mapping[str, Any]) -> Self:
        return cls(
            folder=folder,
            base=Reference(**data["base"]),
            finetune=Reference(**data["finetune"]),
            rank=data["rank"],
            server=data["server"],
            dtype=data["dtype"],
            matrices=tuple(AdapterMatrix.from_plain(matrix) for matrix in data["matrices"]),
            budget=Budget.from_plain(data["budget"]),
            settings=data["settings"],
            notes=tuple(data["notes"]),
            tool_version=data["tool_version"],
            created=data["created"],
            identity=data["identity"],
        )

    def __repr__(self) -> str:
        return (
            f"<ExtractedAdapter {self.finetune.short_name} - {self.base.short_name}, rank {self.rank}: {self.sentence}>"
        )


def _reference(reference: Reference) -> dict[str, Any]:
    return {"ref": reference.ref, "revision": reference.revision, "files": dict(reference.files)}
