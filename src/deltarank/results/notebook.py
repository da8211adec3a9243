"""Results as a notebook shows them: a small fragment of HTML without script, style sheet or chart."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from typing import TYPE_CHECKING

from deltarank.results.formatting import count, figure, percent
from deltarank.results.formatting import escape as escape_controls
from deltarank.results.matrix import Outcome
from deltarank.results.totals import Total

if TYPE_CHECKING:
    from deltarank.results.run import Results


def notebook_html(results: Results) -> str:
    """The verdict, the energy kept by module and rank, and what was left out."""
    return sentences_html(
        (*results.verdict.sentences, *(results.outputs.sentences if results.outputs else ())),
        *(_table(results) if results.totals.whole.energy else ()),
        *(f'<p style="opacity:.7">{_text(line)}</p>' for line in _left_out(results)),
    )


def sentences_html(sentences: Sequence[str], *parts: str) -> str:
    """Sentences, the first as a headline, and HTML after them."""
    shown = [
        *(f'<p style="font-size:1.25em;font-weight:600">{_text(each)}</p>' for each in sentences[:1]),
        *(f"<p>{_text(each)}</p>" for each in sentences[1:]),
        *parts,
    ]
    return '<div style="max-width:60em;line-height:1.45">\n' + "\n".join(shown) + "\n</div>"


def table_html(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column is text and whose other columns are numbers."""
    lines = [_row(headings[0], headings[1:], cell="th"), *(_row(name, cells) for name, *cells in rows)]
    return '<table style="font-variant-numeric:tabular-nums">\n' + "\n".join(lines) + "\n</table>"


class ShownAsLines:
    """What is shown to people as lines of text. The last line says the most."""

    def lines(self) -> list[str]:
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {escape_controls(self.lines()[-1])}>"

    def _repr_html_(self) -> str:
        return "<pre>" + "\n".join(map(_text, self.lines())) + "</pre>"


def _table(results: Results) -> Iterator[str]:
    whole, modules = results.totals.whole, results.totals.by_module
    yield '<table style="font-variant-numeric:tabular-nums">\n<caption>Energy kept, by LoRA rank</caption>'
    yield _row("module", ["share of the change", *map(str, results.ranks)], cell="th")
    for name, total in sorted(modules.items(), key=lambda item: -item[1].energy):
        yield _row(name, [percent(total.energy / whole.energy), *_kept(total, results.ranks)])
    yield _row("all matrices", ["100 %", *_kept(whole, results.ranks)])
    yield _row("cosine distance", ["", *(figure(loss.cosine_distance) for loss in whole.losses)])
    yield "</table>"


def _kept(total: Total, ranks: Iterable[int]) -> list[str]:
    kept = {loss.rank: loss.energy_kept for loss in total.losses}
    return [percent(kept.get(rank), unknown="–") for rank in ranks]


def _row(name: str, cells: Iterable[str], *, cell: str = "td") -> str:
    drawn = "".join(f'<{cell} style="text-align:right">{_text(each)}</{cell}>' for each in cells)
    return f'<tr><th style="text-align:left">{_text(name)}</th>{drawn}</tr>'


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


def _text(text: str) -> str:
    """Escaped; a character that does not print is replaced by "\\ufffd"."""
    return escape("".join(each if each.isprintable() else "\ufffd" for each in text))
