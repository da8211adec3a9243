"""The results of `fleet`: a row for each finetune of one base, as written to fleet.json."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

from deltarank.results.codec import Count, Rank, StoredResult, decode
from deltarank.results.formatting import count, escape, percent
from deltarank.results.json_schema import schema_of
from deltarank.results.kinship import Kinship
from deltarank.results.matrix import Loss, Outcome
from deltarank.results.notebook_parts import sentences_html, table_html
from deltarank.results.outputs import CandidateKind, Outputs
from deltarank.results.rank_plan import RankPlan
from deltarank.results.reference import Reference
from deltarank.results.run import Results, VerdictKind, checked_ranks

FLEET_FORMAT = 1
# 1: the first format (2026-11).


class FleetOutcome(StrEnum):
    """MEASURED: the finetune has results of its own. FAILED: it has none, and `reason` says why."""

    MEASURED = "measured"
    FAILED = "failed"


@dataclass(frozen=True)
class RankDivergence:
    """The mean KL divergence of the rank-r delta, in nats per token, and its 95 % interval, where it is known."""

    rank: Rank
    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class FleetFinetune:
    """One finetune of a fleet. What is null or empty was not measured.

    name           of its folder below the fleet's, and of its row
    reference      as it was given; `revision` is the commit on the Hub
    run            the folder of its run, relative to the fleet's; null if it has none
    reason         why it failed; of a measured one, what a reader must know before its figures are used
    verdict        the kind of the delta; `signal_rank` of a merged LoRA or an adapter
    headline       the first sentence of its verdict
    matrices       how many were measured; `parameters` their weights
    energy         sum of ||D||^2
    relative_norm  ||D|| / ||W0||
    rounding_floor the share of `energy` that storage rounding alone explains
    losses         of all its matrices together, at each rank of the fleet
    text           the text on which `kld` was measured, by `outputs` on its run
    seconds        of computing time for its matrices
    weight_bytes   of its weight files; of an adapter, of the adapter's
    adapter        the folder of the adapter that was extracted from it, relative to the fleet's; null if none was
    """

    name: str
    reference: str
    outcome: FleetOutcome
    revision: str | None = None
    run: str | None = None
    reason: str | None = None
    verdict: VerdictKind | None = None
    signal_rank: Count | None = None
    headline: str | None = None
    matrices: Count = 0
    parameters: Count = 0
    energy: float = 0.0
    relative_norm: float | None = None
    rounding_floor: float | None = None
    losses: tuple[Loss, ...] = ()
    text: str | None = None
    kld: tuple[RankDivergence, ...] = ()
    seconds: float | None = None
    weight_bytes: Count = 0
    adapter: str | None = None

    @classmethod
    def failed(cls, name: str, reference: str, reason: str) -> Self:
        return cls(name, reference, FleetOutcome.FAILED, reason=reason)

    @classmethod
    def of_run(cls, name: str, reference: str, results: Results, *, adapter: str | None = None) -> Self:
        """The row of a finetune whose run is in the folder `name`. Without a measured matrix it counts as failed."""
        whole, verdict = results.totals.whole, results.verdict
        text, kld = _divergences(results.outputs)
        return cls(
            name=name,
            reference=reference,
            outcome=FleetOutcome.MEASURED if whole.matrices else FleetOutcome.FAILED,
            revision=results.finetune.revision,
            run=name,
            reason=_reason(results),
            verdict=verdict.kind,
            signal_rank=verdict.signal_rank,
            headline=verdict.sentences[0],
            matrices=whole.matrices,
            parameters=whole.entries,
            energy=whole.energy,
            relative_norm=whole.relative_norm,
            rounding_floor=whole.rounding_floor,
            losses=whole.losses,
            text=text,
            kld=kld,
            seconds=round(sum(matrix.seconds or 0.0 for matrix in results.matrices), 3),
            weight_bytes=sum(results.finetune.files.values()),
            adapter=adapter,
        )

    @property
    def is_measured(self) -> bool:
        return self.outcome is FleetOutcome.MEASURED

    @property
    def is_of_base(self) -> bool:
        """Whether it was measured, and is a finetune of this base as far as the weights say."""
        return self.is_measured and self.verdict not in (VerdictKind.UNRELATED, VerdictKind.UNKNOWN)


def _divergences(outputs: Outputs | None) -> tuple[str | None, tuple[RankDivergence, ...]]:
    """The main text of a run's outputs, and the divergence of each rank on it."""
    text = outputs.main_text if outputs else None
    if outputs is None or text is None:
        return None, ()
    found = [
        RankDivergence(candidate.rank, on.kld.mean, on.kld.low, on.kld.high)
        for candidate in outputs.candidates
        if candidate.kind is CandidateKind.RANK and candidate.rank
        for on in candidate.logits
        if on.text == text.name
    ]
    return (text.name, tuple(sorted(found, key=lambda each: each.rank))) if found else (None, ())


def _reason(results: Results) -> str | None:
    """What keeps the figures of a run from being those of a whole finetune of this base; None if nothing does."""
    verdict = results.verdict
    if verdict.kind in (VerdictKind.UNRELATED, VerdictKind.UNKNOWN):
        return " ".join(verdict.sentences)
    return "; ".join([*_not_measured(results), *_not_in_both(results)]) or None


def _not_measured(results: Results) -> Iterator[str]:
    failed = [matrix for matrix in results.matrices if not matrix.has_losses]
    if failed:
        why = failed[0].reason or failed[0].outcome.sentence
        yield f"{count(len(failed), 'matrix', 'matrices')} could not be measured ({failed[0].name}: {why})"


def _not_in_both(results: Results) -> Iterator[str]:
    """Layers and rows of tokens that only one of both has. No LoRA adds or removes any."""
    unpaired = results.unpaired
    if unpaired.matrices and unpaired.share:
        owner, other = ("the base's", "finetune") if unpaired.of_base else ("its", "base")
        yield f"{percent(unpaired.share)} of {owner} parameters could not be paired with the {other}"
    rows = next((each for each in results.skipped if each.outcome is Outcome.EXTRA_ROWS), None)
    if rows is not None:
        yield f"{rows.name}: {rows.reason or rows.outcome.sentence}"


@dataclass(frozen=True)
class Fleet(StoredResult):
    """Many finetunes of one base: `from_json(to_json())` and `load(save())` give an equal object.

    `rows()` is a plain list, `pandas.DataFrame(fleet.rows())` a data frame.

    base       the base; its files have their sizes
    settings   ranks and solver, as in a run; `base_bytes` the bytes of its tensors, and `base_bytes_read` those that
               the last process read of them
    finetunes  in the order in which they were first given
    plan       which ranks would serve them; null if it was not asked for
    kinship    the cosines between their deltas; null if it was not asked for
    """

    description = "the results of deltarank fleet"
    cure = "Give the folder that `deltarank fleet -o` wrote, or run `deltarank fleet` again."
    file_name = "fleet.json"
    readable_format = FLEET_FORMAT

    base: Reference
    settings: Mapping[str, Any]
    finetunes: tuple[FleetFinetune, ...]
    tool_version: str
    created: str
    notes: tuple[str, ...] = ()
    plan: RankPlan | None = None
    kinship: Kinship | None = None
    format_version: Count = FLEET_FORMAT

    @property
    def measured(self) -> tuple[FleetFinetune, ...]:
        return tuple(each for each in self.finetunes if each.is_measured)

    @property
    def failed(self) -> tuple[FleetFinetune, ...]:
        return tuple(each for each in self.finetunes if not each.is_measured)

    @property
    def ranks(self) -> tuple[int, ...]:
        return tuple(self.settings["ranks"])

    def rows(self) -> list[dict[str, Any]]:
        """One flat record for each finetune and rank; one without a rank for a finetune that failed."""
        return [row for each in self.finetunes for row in _rows(each)]

    def to_csv(self) -> str:
        """`rows()` as comma-separated values, under a line of column names. Unknown values are empty."""
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(_COLUMNS), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows())
        return text.getvalue()

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """The JSON Schema (draft 2020-12) of fleet.json."""
        return schema_of(cls, title="fleet.json of deltarank", figures={})

    @classmethod
    def _decoded(cls, text: str | bytes) -> Self:
        fleet = decode(cls, text)
        ranks = checked_ranks(fleet.settings.get("ranks"))
        for each in fleet.finetunes:
            found = [loss.rank for loss in each.losses]
            if found not in ([], ranks):
                raise ValueError(f"the losses of {each.name!r} are not those of the ranks - at `$.finetunes`")
        if fleet.kinship:
            fleet.kinship.check()
        if fleet.plan:
            fleet.plan.check()
        return fleet

    def __repr__(self) -> str:
        return (
            f"<Fleet on {escape(self.base.short_name)}: {count(len(self.measured), 'finetune')} measured, "
            f"{len(self.failed)} failed>"
        )

    def _repr_html_(self) -> str:
        """The plan and the relations in words, and the energy that each rank keeps of each finetune."""
        measured = (
            f"{count(len(self.measured), 'finetune')} of {self.base.short_name} measured, {len(self.failed)} failed."
        )
        planned = self.plan.sentences if self.plan else ()
        related = self.kinship.sentences if self.kinship else ()
        rows = [
            (each.name, str(each.verdict or each.reason), *(percent(loss.energy_kept) for loss in each.losses))
            for each in self.finetunes
        ]
        table = table_html(("energy kept at rank", "", *map(str, self.ranks)), rows)
        return sentences_html((*planned, measured, *related), table)


_OF_FINETUNE = (
    "name", "reference", "revision", "outcome", "reason", "verdict", "signal_rank", "matrices", "parameters",
    "relative_norm", "rounding_floor",
)  # fmt: skip
_OF_RANK = ("rank", "cosine_distance", "relative_error", "energy_lost", "energy_kept")
_COLUMNS = (*_OF_FINETUNE, *_OF_RANK, "kld", "kld_low", "kld_high")


def _rows(each: FleetFinetune) -> list[dict[str, Any]]:
    known = {name: getattr(each, name) for name in _OF_FINETUNE}
    known |= {"outcome": each.outcome.value, "verdict": each.verdict.value if each.verdict else None}
    divergences = {found.rank: found for found in each.kld}
    empty = dict.fromkeys(_COLUMNS)
    if not each.losses:
        return [{**empty, **known}]
    rows = []
    for loss in each.losses:
        row = {**empty, **known, **{name: getattr(loss, name) for name in _OF_RANK}}
        if found := divergences.get(loss.rank):
            row |= {"kld": found.mean, "kld_low": found.low, "kld_high": found.high}
        rows.append(row)
    return rows
