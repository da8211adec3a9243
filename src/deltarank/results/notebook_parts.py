"""The parts of what a notebook shows: small fragments of HTML without script, style sheet or chart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from deltarank.results.formatting import escape as escape_controls


def sentences_html(sentences: Sequence[str], *parts: str) -> str:
    """Sentences, the first as a headline, and HTML after them."""
    shown = [
        *(f'<p style="font-size:1.25em;font-weight:600">{plain_html(each)}</p>' for each in sentences[:1]),
        *(f"<p>{plain_html(each)}</p>" for each in sentences[1:]),
        *parts,
    ]
    return '<div style="max-width:60em;line-height:1.45">\n' + "\n".join(shown) + "\n</div>"


def table_html(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column is text and whose other columns are numbers."""
    lines = [table_row(headings[0], headings[1:], cell="th"), *(table_row(name, cells) for name, *cells in rows)]
    return '<table style="font-variant-numeric:tabular-nums">\n' + "\n".join(lines) + "\n</table>"


class ShownAsLines:
    """What is shown to people as lines of text. The last line says the most."""

    def lines(self) -> list[str]:
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {escape_controls(self.lines()[-1])}>"

    def _repr_html_(self) -> str:
        return "<pre>" + "\n".join(map(plain_html, self.lines())) + "</pre>"


def table_row(name: str, cells: Iterable[str], *, cell: str = "td") -> str:
    drawn = "".join(f'<{cell} style="text-align:right">{plain_html(each)}</{cell}>' for each in cells)
    return f'<tr><th style="text-align:left">{plain_html(name)}</th>{drawn}</tr>'


def plain_html(text: str) -> str:
    """Escaped; a character that does not print is replaced by "\\ufffd"."""
    return escape("".join(each if each.isprintable() else "\ufffd" for each in text))
