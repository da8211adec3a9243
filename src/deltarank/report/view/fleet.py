"""The data of the page of a fleet: a row for each finetune, the rank plan, and how the finetunes are related."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from statistics import median
from urllib.parse import quote

from deltarank.report.view.build import kind_in_words
from deltarank.report.view.provenance import clean_command, settings_facts
from deltarank.report.view.table import Table, TableRow
from deltarank.report.view.text import kept_percent, rounded_share, terse_kept, unbroken
from deltarank.results import (
    SERVABLE_RANKS,
    FinetuneNeed,
    Fleet,
    FleetFinetune,
    Kinship,
    Loss,
    RankCost,
    RankPlan,
    count,
    escape,
    headline_rank,
    percent,
    shorten,
    size,
)

USUAL_SIDE = 512
"""The sides of the matrices are not known here: the page opens with the rank that is usual for large ones."""


MINUS = "\u2212"


@dataclass(frozen=True)
class KeptBar:
    """The energy kept at one rank; `terse`: in %.

    `step` from 0 to 9 is its colour: of the energy lost, as in the heat map.
    """

    rank: int
    kept: float
    text: str
    terse: str
    step: int


@dataclass(frozen=True)
class FleetRow:
    """A finetune. Texts are ready to be shown; `change`, `needed` and `cosine` are the numbers to sort by.

    link     of the page of its run; None if it has none
    needed   the rank that it needs, or None; `served` how the plan serves it, "" without a plan
    nearest  the finetune with the largest cosine, and that cosine
    """

    name: str
    link: str | None
    kind: str
    change: float | None
    change_text: str
    bars: tuple[KeptBar, ...]
    needed: int | None
    served: str
    nearest: str
    cosine: float | None
    reason: str | None

    @property
    def cosine_text(self) -> str:
        return cosine_text(self.cosine)

    @property
    def in_words(self) -> str:
        """Its bars, for those who do not see them."""
        return "energy kept: " + "; ".join(f"rank {bar.rank} {bar.text}" for bar in self.bars)


@dataclass(frozen=True)
class FleetPage:
    """All that the page of a fleet shows."""

    title: str
    headline: str
    lines: tuple[str, ...]
    ranks: tuple[int, ...]
    default_index: int
    rows: tuple[FleetRow, ...]
    plan: Table | None
    chosen_index: int | None
    kinship: Kinship | None
    map_names: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]
    command: str | None
    notes: tuple[str, ...]
    tool_version: str

    @property
    def default_rank(self) -> int:
        return self.ranks[self.default_index]


def fleet_page(fleet: Fleet, pages: Container[str] = ()) -> FleetPage:
    """The data of the page.

    Args:
        pages: the names of the finetunes whose folders have a page.
    """
    rank = headline_rank(_stated(fleet), USUAL_SIDE)
    plan = fleet.plan
    return FleetPage(
        title=shorten(escape(fleet.base.short_name)),
        headline=unbroken(plan.sentences[0] if plan else kept_sentence(fleet, rank)),
        lines=tuple(unbroken(line) for line in (*(plan.sentences[1:] if plan else ()), *_failures(fleet))),
        ranks=fleet.ranks,
        default_index=fleet.ranks.index(rank),
        rows=tuple(_row(each, fleet, each.name in pages) for each in fleet.finetunes),
        plan=plan_table(plan) if plan else None,
        chosen_index=[cost.rank for cost in plan.costs].index(plan.chosen) if plan and plan.chosen else None,
        kinship=fleet.kinship,
        map_names=tuple(_label(name) for name in fleet.kinship.names) if fleet.kinship else (),
        facts=tuple(_facts(fleet)),
        command=clean_command(fleet.settings),
        notes=tuple(escape(note) for note in fleet.notes),
        tool_version=escape(fleet.tool_version),
    )


def _stated(fleet: Fleet) -> Sequence[int]:
    """The ranks that the page may open with: that of the plan, else those of vLLM's slots."""
    if fleet.plan and fleet.plan.chosen:
        return [fleet.plan.chosen]
    return [rank for rank in fleet.ranks if rank in SERVABLE_RANKS] or fleet.ranks


def kept_sentence(fleet: Fleet, rank: int) -> str:
    """How much of the change the finetunes keep at a rank."""
    losses = [loss for each in fleet.measured for loss in each.losses if loss.rank == rank]
    base = shorten(escape(fleet.base.short_name))
    if not losses:
        return f"No finetune of {base} was measured."
    kept = sorted(losses, key=lambda loss: loss.energy_kept)
    least, most = kept_percent(kept[0]), kept_percent(kept[-1])
    change = "of the energy of the change in the measured matrices"
    if len(losses) == 1:
        return f"A LoRA of rank {rank} keeps {least} {change} of the only finetune of {base}."
    if least == most:
        return f"A LoRA of rank {rank} keeps {least} {change} of each of {len(losses):,} finetunes of {base}."
    middle = percent(median(loss.energy_kept for loss in losses))
    return (
        f"A LoRA of rank {rank} keeps from {least} to {most} {change}, "
        f"in the median {middle}, of {count(len(losses), 'finetune')} of {base}."
    )


def _failures(fleet: Fleet) -> list[str]:
    if not fleet.failed:
        return []
    return [f"{count(len(fleet.failed), 'finetune')} could not be measured; the table has the reasons."]


def _row(finetune: FleetFinetune, fleet: Fleet, has_page: bool) -> FleetRow:
    need = _need(fleet.plan, finetune.name)
    nearest, cosine = nearest_of(fleet.kinship, finetune.name)
    return FleetRow(
        name=_label(finetune.name),
        link=quote(f"{finetune.run}/report.html") if has_page and finetune.run else None,
        kind=kind_in_words(finetune.verdict) if finetune.verdict and finetune.is_measured else "not measured",
        change=finetune.relative_norm,
        change_text=unbroken(percent(finetune.relative_norm, unknown="")),
        bars=tuple(_bar(loss) for loss in finetune.losses),
        needed=need.rank if need else None,
        served=served_in_words(need),
        nearest=_label(nearest) if nearest else "",
        cosine=cosine,
        reason=unbroken(escape(finetune.reason)) if finetune.reason else None,
    )


def _bar(loss: Loss) -> KeptBar:
    shown = rounded_share(loss.energy_kept) or 0.0
    return KeptBar(
        loss.rank, shown, unbroken(kept_percent(loss)), terse_kept(loss.energy_lost), min(int(10 * loss.energy_lost), 9)
    )


def _need(plan: RankPlan | None, name: str) -> FinetuneNeed | None:
    return next((need for need in plan.finetunes if need.name == name), None) if plan else None


def served_in_words(need: FinetuneNeed | None) -> str:
    """How a plan serves a finetune."""
    if need is None:
        return ""
    return f"LoRA of rank {need.rank}" if need.served_as else f"own weights, {size(need.weight_bytes)}"


def nearest_of(kinship: Kinship | None, name: str) -> tuple[str | None, float | None]:
    """The other finetune with the largest cosine, and that cosine."""
    if kinship is None or name not in kinship.names:
        return None, None
    others = [other for other in kinship.names if other != name]
    nearest = max(others, key=lambda other: kinship.cosine(name, other))
    return nearest, kinship.cosine(name, nearest)


def plan_table(plan: RankPlan) -> Table:
    """The costs at each rank."""
    headings = (
        "rank",
        "within the limit",
        "need a higher rank",
        "at no rank",
        "one slot",
        *(("slots that fit",) if plan.gpu_memory is not None else ()),
        "as LoRAs",
        "slots",
        "base and slots",
        "own weights",
        "in all",
    )
    return Table(headings, (tuple(_cost_row(cost, plan, i) for i, cost in enumerate(plan.costs)),))


def _cost_row(cost: RankCost, plan: RankPlan, index: int) -> TableRow:
    cells = (
        f"{cost.within:,}",
        f"{cost.need_higher:,}",
        f"{cost.need_own:,}",
        size(cost.slot_bytes),
        *((f"{cost.most_slots or 0:,}",) if plan.gpu_memory is not None else ()),
        f"{cost.as_loras:,}",
        f"{cost.slots:,}",
        size(cost.server_bytes) if cost.as_loras else "–",
        size(cost.own_bytes),
        size(cost.total_bytes) if cost.fits else "does not fit",
    )
    return TableRow(str(cost.rank), cells, index)


def _facts(fleet: Fleet) -> list[tuple[str, str]]:
    shown = {"command", "ranks", "base_bytes", "base_bytes_read"}
    sizes = [
        (title, size(fleet.settings[key]))
        for title, key in (("tensors of the base", "base_bytes"), ("read of the base", "base_bytes_read"))
        if isinstance(fleet.settings.get(key), int)
    ]
    revision = f" at {escape(fleet.base.revision)}" if fleet.base.revision else ""
    return [
        ("base", f"{escape(fleet.base.ref)}{revision}"),
        ("finetunes", f"{len(fleet.measured):,} measured, {len(fleet.failed):,} not"),
        ("ranks", ", ".join(map(str, fleet.ranks))),
        *sizes,
        *settings_facts(fleet.settings, without=shown),
        ("measured", escape(fleet.created)),
    ]


def _label(name: str) -> str:
    return shorten(escape(name))


def cosine_text(cosine: float | None) -> str:
    """A cosine in two digits, in four if it is nearly 1; 1 itself only of a duplicate."""
    if cosine is None:
        return ""
    digits = 0 if cosine == 1 else 4 if abs(cosine) >= 0.995 else 2
    return f"{cosine:.{digits}f}".replace("-", MINUS)
