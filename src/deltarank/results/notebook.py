"""A run as a notebook shows it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from deltarank.results.formatting import count, figure, percent
from deltarank.results.matrix import Outcome
from deltarank.results.notebook_parts import plain_html, sentences_html, table_row
from deltarank.results.totals import Total

if TYPE_CHECKING:
    from deltarank.results.run import Results


def notebook_html(results: Results) -> str:
    """The verdict, the energy kept by module and rank, and what was left out."""
    return sentences_html(
        (*results.verdict.sentences, *(results.outputs.sentences if results.outputs else ())),
        *(_table(results) if results.totals.whole.energy else ()),
        *(f'<p style="opacity:.7">{plain_html(line)}</p>' for line in _left_out(results)),
    )


def _table(results: Results) -> Iterator[str]:
    whole, modules = results.totals.whole, results.totals.by_module
    yield '<table style="font-variant-numeric:tabular-nums">\n<caption>Energy kept, by LoRA rank</caption>'
    yield table_row("module", ["share of the change", *map(str, results.ranks)], cell="th")
    for name, total in sorted(modules.items(), key=lambda item: -item[1].energy):
        yield table_row(name, [percent(total.energy / whole.energy), *_kept(total, results.ranks)])
    yield table_row("all matrices", ["100 %", *_kept(whole, results.ranks)])
    yield table_row("cosine distance", ["", *(figure(loss.cosine_distance) for loss in whole.losses)])
    yield "</table>"


def _kept(total: Total, ranks: Iterable[int]) -> list[str]:
    kept = {loss.rank: loss.energy_kept for loss in total.losses}
    return [percent(kept.get(rank), unknown="–") for rank in ranks]


def _left_out(results: Results) -> Iterator[str]:
    """One line an outcome."""
    groups: dict[Outcome, list[float | None]] = {}
    for matrix in results.matrices:
        if not matrix.has_losses:
            groups.setdefault(matrix.outcome, []).append(None)
    for skipped in results.skipped:
        groups.setdefault(skipped.outcome, []).append(skipped.share)
    for outcome, shares in groups.items():
        known = [share for share in shares if share is not None]
        change = f" ({percent(math.fsum(known))} of the whole change)" if known else ""
        yield f"Left out: {count(len(shares), 'tensor')}{change}: {outcome.sentence}."
