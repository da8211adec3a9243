"""A fleet in a terminal: the plan, a line for each finetune, how they are related, and what could not be measured."""

from __future__ import annotations

from deltarank.report.terminal.fitting import in_ascii, table_that_fits, wrapped
from deltarank.report.view.fleet import FleetPage, FleetRow, fleet_page
from deltarank.report.view.text import NO_BREAK
from deltarank.results import Fleet

MOST_ROWS = 60
"""Of more finetunes, the table has the first ones."""

_LEAST_WIDTH = 60
_OF_THE_PLAN = ("in all", "as LoRAs", "slots", "own weights", "base and slots", "within the limit")
"""The columns of the plan, most important first: narrow terminals omit the last ones, and first all others."""

_WORDS = ("kind", "served with", "nearest")


def fleet_summary(fleet: Fleet, *, colour: bool = False, width: int = 100) -> str:
    """The fleet as text, at most `width` columns wide (60 at least)."""
    page, width = fleet_page(fleet), max(width, _LEAST_WIDTH)
    headline = wrapped(page.headline, width)
    related = page.kinship.sentences if page.kinship else ()
    reasons = [f"{row.name}: {row.reason}" for row in page.rows if row.reason]
    blocks = [
        [f"\x1b[1m{line}\x1b[0m" for line in headline] if colour else headline,
        [line for sentence in page.lines for line in wrapped(sentence, width)],
        _plan(page, width),
        _finetunes(page, width),
        [line for sentence in related for line in wrapped(sentence, width)],
        [line for reason in reasons for line in wrapped(reason, width)],
        [line for note in page.notes for line in wrapped(f"note: {note}", width)],
    ]
    return "\n\n".join("\n".join(lines) for lines in blocks if lines).replace(NO_BREAK, " ") + "\n"


def _plan(page: FleetPage, width: int) -> list[str]:
    """The costs at each rank; the chosen one is marked."""
    if page.plan is None:
        return []
    rank, *others = page.plan.headings
    rows = [[f"  {rank}", *others]]
    for row in page.plan.rows:
        mark = ">" if row.rank_index == page.chosen_index else " "
        rows.append([f"{mark} {row.name:>{len(rank)}}", *map(in_ascii, row.cells)])
    needed = sorted(others, key=lambda name: _OF_THE_PLAN.index(name) if name in _OF_THE_PLAN else len(_OF_THE_PLAN))
    return table_that_fits(rows, needed, width, where="fleet.json has")


def _finetunes(page: FleetPage, width: int) -> list[str]:
    plan = ("needs rank", "served with") if page.plan else ()
    related = ("nearest",) if page.kinship else ()
    ranks = list(map(str, page.ranks))
    head = ["finetune", "kind", "change", *ranks, *plan, *related]
    rows = [head, *(_row(row, page) for row in page.rows[:MOST_ROWS])]
    others = (rank for rank in ranks if rank != str(page.default_rank))
    needed = [str(page.default_rank), *plan, "kind", "change", *others, *related]
    hidden = len(page.rows) - MOST_ROWS
    more = [f"({hidden:,} more are in fleet.csv and on the page)"] if hidden > 0 else []
    table = table_that_fits(rows, needed, width, where="fleet.csv has", words=_WORDS)
    heading = "Energy of the change that a LoRA of each rank keeps, in %:"
    return [heading, "", *table, *more]


def _row(row: FleetRow, page: FleetPage) -> list[str]:
    kept = [bar.terse for bar in row.bars] or [""] * len(page.ranks)
    needed = str(row.needed or ("none" if row.served else ""))
    plan = (needed, row.served) if page.plan else ()
    related = (f"{row.cosine_text} {row.nearest}".strip(),) if page.kinship else ()
    return [row.name, row.kind, row.change_text, *kept, *plan, *related]
