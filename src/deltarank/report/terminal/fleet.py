"""A fleet in a terminal: the plan, a line for each finetune, how they are related, and what could not be measured."""

from __future__ import annotations

from deltarank.report.terminal.fitting import wrapped
from deltarank.report.view.fleet import FleetPage, FleetRow, fleet_page
from deltarank.report.view.text import NO_BREAK
from deltarank.results import Fleet, format_table

MOST_ROWS = 60
"""Of more finetunes, the table has the first ones."""

_LEAST_WIDTH = 60


def fleet_summary(fleet: Fleet, *, colour: bool = False, width: int = 100) -> str:
    """The fleet as text. Sentences are at most `width` columns wide (60 at least); tables are as wide as they are."""
    page, width = fleet_page(fleet), max(width, _LEAST_WIDTH)
    headline = wrapped(page.headline, width)
    related = page.kinship.sentences if page.kinship else ()
    reasons = [f"{row.name}: {row.reason}" for row in page.rows if row.reason]
    blocks = [
        [f"\x1b[1m{line}\x1b[0m" for line in headline] if colour else headline,
        [line for sentence in page.lines for line in wrapped(sentence, width)],
        _plan(page),
        _finetunes(page),
        [line for sentence in related for line in wrapped(sentence, width)],
        [line for reason in reasons for line in wrapped(reason, width)],
        [line for note in page.notes for line in wrapped(f"note: {note}", width)],
    ]
    return "\n\n".join("\n".join(lines) for lines in blocks if lines).replace(NO_BREAK, " ") + "\n"


def _plan(page: FleetPage) -> list[str]:
    """The costs at each rank; the chosen one is marked."""
    if page.plan is None:
        return []
    rows = [("", *page.plan.headings)]
    for row in page.plan.rows:
        cells = (cell if isinstance(cell, str) else cell[0] for cell in row.cells)
        rows.append((">" if row.rank_index == page.chosen_index else "", row.name, *cells))
    return format_table(rows, align="<>")


def _finetunes(page: FleetPage) -> list[str]:
    plan = ("needs rank", "served with") if page.plan else ()
    related = ("nearest",) if page.kinship else ()
    head = ("finetune", "kind", "change", *map(str, page.ranks), *plan, *related)
    rows = [head, *(_row(row, page) for row in page.rows[:MOST_ROWS])]
    hidden = len(page.rows) - MOST_ROWS
    more = [f"({hidden:,} more are in fleet.csv and on the page)"] if hidden > 0 else []
    align = "<<>" + ">" * len(page.ranks) + ("><" if plan else "") + "<"
    return ["Energy of the change that a LoRA of each rank keeps, in %:", "", *format_table(rows, align=align), *more]


def _row(row: FleetRow, page: FleetPage) -> tuple[str, ...]:
    kept = [bar.terse for bar in row.bars] or [""] * len(page.ranks)
    needed = str(row.needed or ("none" if row.served else ""))
    plan = (needed, row.served) if page.plan else ()
    related = (f"{row.cosine_text} {row.nearest}".strip(),) if page.kinship else ()
    return (row.name, row.kind, row.change_text, *kept, *plan, *related)
