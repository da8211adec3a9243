"""The results of one run of `compare`, and of `outputs` where it was run, as written to results.json."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

from deltarank.results.added_adapter import AddedAdapter
from deltarank.results.blind import BlindScore
from deltarank.results.codec import Count, Rank, StoredResult, decode, json_line, to_plain
from deltarank.results.formatting import escape, percent_kept
from deltarank.results.json_schema import schema_of
from deltarank.results.matrix import MatrixResult, Skipped
from deltarank.results.notebook import notebook_html
from deltarank.results.notebook_parts import sentences_html
from deltarank.results.outputs import Outputs
from deltarank.results.ranks import headline_rank
from deltarank.results.reference import Reference
from deltarank.results.totals import Totals, WrittenTotals
from deltarank.results.unpaired import Unpaired
from deltarank.system import user_path, write_atomically

FORMAT_VERSION = 1
# 1: the first format (2026-11).

_NO_MATRICES = '\n "matrices": []'


class VerdictKind(StrEnum):
    """What kind of delta this is."""

    IDENTICAL = "identical"
    MERGED_LORA = "merged_lora"
    ADAPTER = "adapter"
    FULL = "full"
    ROUNDING = "rounding"
    UNRELATED = "unrelated"
    UNKNOWN = "unknown"


OPENED_KINDS = (VerdictKind.MERGED_LORA, VerdictKind.ADAPTER, VerdictKind.FULL, VerdictKind.ROUNDING)
"""Those whose verdicts open with three lines under the headline."""


@dataclass(frozen=True)
class Verdict:
    """The answer in words. `sentences[0]` is the headline.

    If the delta is a LoRA, a full finetune or rounding, three lines follow: which of these it is, the rank that it
    needs, and what a LoRA leaves out. The other sentences are details.
    """

    kind: VerdictKind
    sentences: tuple[str, ...]
    signal_rank: Count | None = None

    @property
    def opening(self) -> tuple[str, ...]:
        """The three lines after the headline; empty if the headline says all."""
        return self.sentences[1:4] if self.kind in OPENED_KINDS else ()

    @property
    def details(self) -> tuple[str, ...]:
        return self.sentences[1 + len(self.opening) :]

    def _repr_html_(self) -> str:
        return sentences_html(self.sentences)


@dataclass(frozen=True)
class CalibrationText:
    """The text that the finetune read to measure the activation-weighted losses.

    name          of the files or folders
    documents     those that were read, and `tokens` in them
    first_tokens  whether the first token of each document counts as an input; only where it cannot be left out
    """

    name: str
    documents: Count
    tokens: Count
    first_tokens: bool = False


@dataclass(frozen=True)
class AuditRow:
    """A matrix measured a second time, in float64 by a full SVD."""

    name: str
    rank: Rank
    cosine_distance: float
    cosine_distance_float64: float

    @property
    def deviation(self) -> float:
        return abs(self.cosine_distance - self.cosine_distance_float64)


@dataclass(frozen=True)
class Results(StoredResult):
    """One run: `from_json(to_json())` and `load(save())` give an equal object.

    In a notebook it shows its verdict and a table; `frame()` is a data frame, `rows()` a plain list.
    """

    description = "the results of a deltarank run"
    cure = "Give the folder that `deltarank compare` or `deltarank outputs` wrote, or run the command again."
    file_name = "results.json"
    readable_format = FORMAT_VERSION

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
    calibration_text: CalibrationText | None = None
    adapter: AddedAdapter | None = None
    outputs: Outputs | None = None
    blind: tuple[BlindScore, ...] = ()
    format_version: Count = FORMAT_VERSION

    @cached_property
    def totals(self) -> Totals:
        return Totals.of(self.matrices)

    @cached_property
    def unpaired(self) -> Unpaired:
        """What no figure covers: matrices without a counterpart, and tensors that could not be measured."""
        return Unpaired.of(self.measured, self.skipped, [m for m in self.matrices if not m.has_losses], self.adapter)

    @property
    def ranks(self) -> tuple[int, ...]:
        return tuple(self.settings["ranks"])

    @property
    def measured(self) -> tuple[MatrixResult, ...]:
        """The matrices that have losses, identical ones among them."""
        return tuple(m for m in self.matrices if m.has_losses)

    @property
    def stated_ranks(self) -> tuple[int, ...]:
        """The ranks that a headline may be about: those of the outputs, as far as the weights were measured there."""
        of_outputs = self.outputs.ranks if self.outputs else ()
        return tuple(rank for rank in of_outputs if rank in self.ranks) or of_outputs or self.ranks

    @property
    def largest_side(self) -> int:
        """The largest rank that a measured matrix can have."""
        return max((matrix.max_rank for matrix in self.measured), default=1)

    @property
    def headline_rank(self) -> int:
        """The rank that verdict, page and terminal state first."""
        return headline_rank(self.stated_ranks, self.largest_side)

    def rank_for_error(self, max_error: float) -> int | None:
        """The smallest rank at which the relative error ||D - D_r|| / ||D|| of the whole run is at most `max_error`.

        0 if nothing changed; None if the rank is higher than those that were measured. For one module:
        `results.totals.by_module[module].rank_for_error(max_error)`.
        """
        return self.totals.whole.rank_for_error(max_error)

    def rows(self) -> list[dict[str, Any]]:
        """One flat record for each matrix and rank: `pandas.DataFrame(results.rows())`."""
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
                "activation_lost": m.activation_loss.lost[i] if m.activation_loss else None,
            }
            for m in self.measured
            for i, loss in enumerate(m.losses)
        ]

    def to_csv(self) -> str:
        """`rows()` as comma-separated values, under a line of column names. Unknown values are empty."""
        rows = self.rows()
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else ["name"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    def frame(self) -> Any:
        """`rows()` as a data frame of pandas, or of polars if pandas is not installed.

        Raises:
            ModuleNotFoundError: neither is installed.
        """
        for library in ("pandas", "polars"):
            if find_spec(library):
                return import_module(library).DataFrame(self.rows())
        raise ModuleNotFoundError("Results.frame() needs pandas or polars: pip install pandas")

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """The JSON Schema (draft 2020-12) of results.json."""
        return schema_of(cls, title="results.json of deltarank", figures={cls: {"totals": WrittenTotals}})

    def to_plain(self) -> dict[str, Any]:
        """As dictionaries, lists, texts and numbers, in the order of results.json."""
        return self._to_plain(self.totals)

    def _to_plain(self, totals: Totals) -> dict[str, Any]:
        return {
            "format_version": self.format_version,
            "tool_version": self.tool_version,
            "created": self.created,
            "base": to_plain(self.base),
            "finetune": to_plain(self.finetune),
            "settings": to_plain(self.settings),
            "matrices": to_plain(self.matrices),
            "skipped": to_plain(self.skipped),
            "totals": to_plain(totals.written()),
            "verdict": to_plain(self.verdict),
            "notes": list(self.notes),
            "audit": to_plain(self.audit),
            "calibration_text": to_plain(self.calibration_text),
            "adapter": to_plain(self.adapter),
            "outputs": to_plain(self.outputs),
            "blind": to_plain(self.blind),
        }

    def to_json(self) -> str:
        """As the text of results.json, each matrix on a line of its own."""
        return "".join(self._json_parts())

    def _json_parts(self) -> Iterator[str]:
        """In parts, so that a file of 50,000 matrices is never in memory as a whole."""
        frame = json.dumps(replace(self, matrices=())._to_plain(self.totals), indent=1, allow_nan=False)
        before, after = frame.split(_NO_MATRICES)  # at that depth only there: a text has no new lines of its own
        yield before + _NO_MATRICES.rstrip("]")
        for number, matrix in enumerate(self.matrices):
            yield ("," if number else "") + "\n  " + json_line(matrix)
        yield "\n ]" + after + "\n"

    @classmethod
    def _decoded(cls, text: str | bytes) -> Self:
        results = decode(cls, text)
        ranks = checked_ranks(results.settings.get("ranks"))
        for matrix in results.matrices:
            matrix.check(ranks)
        return results

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes `path` whole or not at all."""
        target = user_path(path)
        with write_atomically(target) as partial, partial.open("w", encoding="utf-8") as file:
            file.writelines(self._json_parts())
        return target

    def __repr__(self) -> str:
        losses = ", ".join(f"rank {x.rank}: {percent_kept(x.energy_lost)} kept" for x in self.totals.losses[:4])
        return (
            f"<Results {escape(self.finetune.short_name)} - {escape(self.base.short_name)}: "
            f"{len(self.measured)} matrices, {self.verdict.kind.value}; {losses}>"
        )

    def _repr_html_(self) -> str:
        return notebook_html(self)


def common_headline_rank(runs: Sequence[Results]) -> int:
    """That of several runs: among the ranks that all of them may state, or any of them if they share none."""
    shared = set.intersection(*(set(run.stated_ranks) for run in runs))
    ranks = shared or {rank for run in runs for rank in run.stated_ranks}
    return headline_rank(sorted(ranks), max(run.largest_side for run in runs))


def checked_ranks(ranks: Any) -> list[int]:
    """Raises ValueError if they are not the ranks of a run: whole numbers from 1, in ascending order, each once."""
    if not isinstance(ranks, list) or not ranks or not all(type(rank) is int and 0 < rank < 2**31 for rank in ranks):
        raise ValueError("expected a list of ranks - at `$.settings.ranks`")
    if sorted(set(ranks)) != ranks:
        raise ValueError("expected ranks in ascending order, each once - at `$.settings.ranks`")
    return ranks
