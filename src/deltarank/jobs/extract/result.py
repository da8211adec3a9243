"""What an extraction wrote and what it lost: plain numbers, in the adapter's folder as deltarank.json."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from deltarank.adapters import METADATA_FILE, Budget
from deltarank.results import Count, Energy, Loss, Outcome, Rank, Reference, StoredResult, to_plain
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
    layer: Count | None
    module: str
    shape: tuple[Count, ...]
    outcome: Outcome
    rank: Count
    energy: Energy = 0.0
    base_energy: Energy = 0.0
    losses: tuple[Loss, ...] = ()
    written: Loss | None = None
    reason: str | None = None


@dataclass(frozen=True)
class SummedEnergy:
    """A tensor that has no factors, as a line of the folder that the adapter grows in.

    energy_of  its name
    energy     ||D||^2; None if it is not finite
    rounded    ||D - D as written||^2, of a bias that the adapter carries
    """

    energy_of: str
    energy: Energy | None
    rounded: Energy = 0.0


@dataclass(frozen=True)
class ExtractedAdapter(StoredResult):
    """An adapter that `extract` wrote to `folder`.

    dtype       of A and B: "bfloat16"
    settings    what was asked for, and the command where there was one
    identity    equal for two extractions only if inputs and settings are
    """

    description = "what `deltarank extract` writes about an adapter"
    cure = "Give the folder that `deltarank extract -o` wrote."
    file_name = METADATA_FILE
    readable_format = FORMAT_VERSION

    base: Reference
    finetune: Reference
    rank: Rank
    server: str
    dtype: str
    matrices: tuple[AdapterMatrix, ...]
    budget: Budget
    settings: Mapping[str, Any]
    notes: tuple[str, ...]
    tool_version: str
    created: str
    identity: str
    folder: Path = Path()

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
            "base": to_plain(self.base),
            "finetune": to_plain(self.finetune),
            "rank": self.rank,
            "server": self.server,
            "dtype": self.dtype,
            "sentence": self.sentence,
            "budget": self.budget.to_plain(),
            "matrices": to_plain(self.matrices),
            "settings": to_plain(self.settings),
            "notes": list(self.notes),
            "identity": self.identity,
        }

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Reads what an adapter says about itself, from its folder.

        Raises:
            ResultsError: (slug "results-unreadable") there is no deltarank.json, or it cannot be read.
        """
        return replace(super().load(Path(path) / METADATA_FILE), folder=Path(path))

    def __repr__(self) -> str:
        return (
            f"<ExtractedAdapter {self.finetune.short_name} - {self.base.short_name}, rank {self.rank}: {self.sentence}>"
        )
