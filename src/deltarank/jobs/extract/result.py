"""The result of an extraction: what was written and what it loses, stored beside the adapter as deltarank.json."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from deltarank.adapters import METADATA_FILE, Budget
from deltarank.results import (
    AdapterBehaviour,
    Calibration,
    Count,
    Energy,
    Loss,
    Norm,
    Outcome,
    Rank,
    Reference,
    Share,
    StoredResult,
    WrittenLoss,
    noise_shares,
    percent,
    schema_of,
    sentences_html,
    table_html,
    to_plain,
)
from deltarank.servers import get_server, server_names
from deltarank.system import user_path

FORMAT_VERSION = 1
# 1: the first format (2026-11).


@dataclass(frozen=True)
class AdapterMatrix:
    """One matrix that was to be extracted.

    name         its tensor in the finetune
    path         its module in the base
    rank         of its factors as written, including padding with zeros
    energy       ||D||^2
    base_energy  ||W0||^2
    losses       the loss of the best approximation of that rank, as `compare` reports it: one entry, or none
    written      the loss of the factors as written, rounding included, also of calibrated ones; None if there are none
    reason       why there are no factors
    rounding_floor, noise_edge, signal_share
                 as `compare` reports them; None if they are not known. The share is not known if all singular values
                 that were computed are above the noise edge
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
    written: WrittenLoss | None = None
    reason: str | None = None
    rounding_floor: Norm | None = None
    noise_edge: float | None = None
    signal_share: Share | None = None

    @property
    def relative_norm(self) -> float | None:
        """||D|| / ||W0||; None of a base of zeros."""
        return math.sqrt(self.energy / self.base_energy) if self.base_energy > 0 else None

    def loss(self, rank: int) -> Loss:
        """Of the best approximation of this matrix's rank in the adapter, which may be lower than the adapter's."""
        return self.losses[0]


@dataclass(frozen=True)
class SummedEnergy:
    """The energy of a tensor without factors, also as a record of a run that may be resumed.

    energy_of  the name of the tensor
    energy     ||D||^2; None if it is not finite, or could not be read
    rounded    ||D - D as written||^2 of a bias that the adapter carries
    """

    energy_of: str
    energy: Energy | None
    rounded: Energy = 0.0


@dataclass(frozen=True)
class LoadCheck:
    """Whether PEFT loads the adapter into the base's class: every tensor is used, and no parameter left empty.

    checked       False where the class cannot be built
    loads         None if it was not checked
    model_class   the class of transformers
    peft_version  the version that was asked
    reason        why it was not checked, or what PEFT does not load
    """

    checked: bool
    loads: bool | None = None
    model_class: str | None = None
    peft_version: str | None = None
    reason: str | None = None

    @property
    def sentence(self) -> str:
        if not self.checked:
            return f"Whether PEFT finds the modules of this adapter was not checked: {self.reason}"
        if self.loads:
            return f"Checked: PEFT {self.peft_version} loads all of it into {self.model_class}"
        return f"PEFT {self.peft_version} does not load all of it into {self.model_class}: {self.reason}"


@dataclass(frozen=True)
class ExtractedAdapter(StoredResult):
    """An adapter that `extract` wrote to `folder`.

    rank        of the adapter; matrices may have smaller ones
    dtype       of A and B: "bfloat16"
    budget      where the whole change went
    settings    the options, versions, duration and, if there was one, the command line
    identity    equal for two extractions only if their inputs and options are equal
    load_check  whether PEFT loads it
    behaviour   what `outputs` measured of it; None before `update_card`
    calibration how its factors were fitted to the finetune's predictions; None for a plain extraction. Of `matrices`,
                `losses` are the best that the rank can, and `written` is what the fitted factors lose
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
    load_check: LoadCheck = LoadCheck(checked=False, reason="an earlier version of deltarank wrote it")
    behaviour: AdapterBehaviour | None = None
    calibration: Calibration | None = None
    folder: Path = field(default_factory=Path)

    @property
    def sentence(self) -> str:
        """The budget as a sentence: "keeps 71 % of the change in the weights; ..."."""
        return self.budget.sentence(get_server(self.server), self.rank)

    @property
    def noise_sentence(self) -> str:
        """How much of what is truncated is storage rounding; "" where that is little, or little is truncated."""
        shares = noise_shares([m for m in self.matrices if m.losses], self.rank)
        return " ".join(shares.sentences_on("what is truncated"))

    @property
    def modules(self) -> list[tuple[str, int, float]]:
        """(module, number of matrices, share of its energy that the adapter keeps), the largest change first."""
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
        """The share of a module's energy that the best approximations of this rank keep."""
        rows = [m for m in self.matrices if m.module == module and m.losses]
        energy = math.fsum(m.energy for m in rows)
        return 1 - math.fsum(m.losses[0].energy_lost * m.energy for m in rows) / energy if energy > 0 else 1.0

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """The JSON Schema (draft 2020-12) of deltarank.json."""
        figures = {cls: {"format_version": int, "sentence": str}, Budget: Budget.figures()}
        return schema_of(cls, title="deltarank.json of an adapter", figures=figures, hidden=["folder"])

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
            "load_check": to_plain(self.load_check),
            "behaviour": to_plain(self.behaviour),
            "calibration": None if self.calibration is None else to_plain(self.calibration),
        }

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Reads the deltarank.json in the folder of an adapter.

        Raises:
            ResultsError: (slug "results-unreadable") there is no deltarank.json, or it cannot be read.
        """
        return replace(super().load(user_path(path) / METADATA_FILE), folder=user_path(path))

    @classmethod
    def _decoded(cls, text: str | bytes) -> Self:
        adapter = super()._decoded(text)
        if adapter.server not in server_names():
            raise ValueError(f"unknown server {adapter.server!r}")
        return adapter

    def __repr__(self) -> str:
        return (
            f"<ExtractedAdapter {self.finetune.short_name} - {self.base.short_name}, rank {self.rank}: {self.sentence}>"
        )

    def _repr_html_(self) -> str:
        rows = [(name, str(matrices), percent(kept)) for name, matrices, kept in self.modules]
        sentences = (self.sentence, self.noise_sentence, f"{self.load_check.sentence}.")
        return sentences_html([*filter(None, sentences)], table_html(("module", "matrices", "kept"), rows))
