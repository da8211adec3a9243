"""Many runs as tables with a row for each: the behaviour kept by candidate, and the energy kept by rank."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from deltarank.report.terminal.fitting import in_ascii, table_that_fits, wrapped
from deltarank.report.view.page import PageData
from deltarank.report.view.text import terse_behaviour, terse_kept
from deltarank.results import Logits, figure

_KIND = "kind"
_RANK = re.compile(r"^rank (?=\d+$)")

_Columns = Mapping[str, Sequence[str]]
"""The cells of each column by its heading, one for each run."""


def behaviour_of_runs(page: PageData, candidates: Sequence[Mapping[str, Logits]], rank: int, width: int) -> list[str]:
    """The behaviour kept of each run by candidate; the base's column has its KLD, which is where 0 % is.

    Args:
        candidates: of each run by name, the base first.
        rank: its candidate is shown however little room there is.
    """
    names = list(dict.fromkeys(name for run in sorted(candidates, key=len, reverse=True) for name in run))
    if not names:
        return []
    base, *others = names
    zero = f"{base}, nats"
    columns = {
        zero: [figure(run[base].kld.mean) if base in run else "-" for run in candidates],
        **{_RANK.sub("", name): [_kept(run.get(name)) for run in candidates] for name in others},
    }
    heading = (
        "Behaviour kept, in %, on the finetune's own answers, by LoRA rank and by other candidates. 0 % is the base, "
        "whose mean KL divergence from the finetune is stated in nats per token."
    )
    needed = sorted(columns, key=lambda name: (name != str(rank), name != zero, _letters(name)))
    return _table(heading, page, columns, needed, width, noun="candidate")


def _letters(heading: str) -> int:
    """Of a heading that is no rank: short ones come first."""
    return 0 if heading.isdecimal() else len(heading)


def _kept(logits: Logits | None) -> str:
    return "-" if logits is None or logits.kept is None else in_ascii(terse_behaviour(logits.kept.value))


def energy_of_runs(page: PageData, rank: int, width: int) -> list[str]:
    """The kind of each run, and the energy that it keeps at each rank."""
    by_rank = {
        str(each): [in_ascii(terse_kept(run.whole.lost[i])) for run in page.runs] for i, each in enumerate(page.ranks)
    }
    columns = {_KIND: [run.kind for run in page.runs], **by_rank}
    needed = sorted(columns, key=lambda name: (name != str(rank), name != _KIND))
    heading = "Energy of the change in the matrices that a LoRA of each rank keeps, in %."
    return _table(heading, page, columns, needed, width, noun="rank")


def _table(
    heading: str, page: PageData, columns: _Columns, needed: Sequence[str], width: int, *, noun: str
) -> list[str]:
    """A row for each run with the columns that fit; `needed` are all columns, the most important first."""
    cells = zip(*columns.values(), strict=True)
    rows = [["", *columns], *([run.label, *row] for run, row in zip(page.runs, cells, strict=True))]
    table = table_that_fits(rows, needed, width, where="the report has", words=[_KIND], noun=noun, indent=2)
    return [*wrapped(heading, width), "", *table]
