"""What fits into the width of a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from deltarank.report.view.table import TableCell
from deltarank.report.view.text import NO_BREAK, unbroken
from deltarank.results import format_table, listing, shorten

_NAME_WIDTH = 24
"""The least width of names, so that a narrow terminal has room for figures."""


def wrapped(text: str, width: int, *, indent: str = "") -> list[str]:
    """Lines of at most `width` columns, all but the first after `indent`. A percent sign stays with its number."""
    lines = textwrap.wrap(unbroken(text), width, subsequent_indent=indent, break_on_hyphens=False)
    return [line.replace(NO_BREAK, " ") for line in lines]


def columns_that_fit(
    rows: Sequence[list[str]], needed: Sequence[int], width: int, *, name: int, gap: int, minimum: int = 0
) -> list[list[str]]:
    """The rows with the columns that fit into `width`: the names, and of `needed` each that still fits.

    Names have `name` letters at least, and are cut where they need more than what is left.
    """
    widths = [max(minimum, *(len(row[i]) for row in rows)) for i in range(len(rows[0]))]
    free_columns = width - min(widths[0], name)
    chosen = []
    for column in needed:
        if widths[column] + gap <= free_columns:
            free_columns -= widths[column] + gap
            chosen.append(column)
    name_width = free_columns + min(widths[0], name)
    return [[shorten(row[0], most=name_width), *(row[i] for i in sorted(chosen))] for row in rows]


def table_that_fits(
    rows: Sequence[list[str]],
    needed: Sequence[str],
    width: int,
    *,
    where: str,
    words: Sequence[str] = (),
    noun: str = "column",
    indent: int = 0,
) -> list[str]:
    """A table with the columns that fit, and a sentence that names the others.

    Args:
        rows: the headings, which all differ, and the cells. The first column has the names.
        needed: the headings of the other columns, the most important one first.
        where: what has the others, as in "results.json has".
        words: the headings of columns of words, which are aligned to the left.
    """
    headings = rows[0]
    shown = columns_that_fit(rows, list(map(headings.index, needed)), width - indent, name=_NAME_WIDTH, gap=2)
    align = "<" + "".join("<" if heading in words else ">" for heading in shown[0][1:])
    missing = [heading for heading in headings[1:] if heading not in shown[0]]
    return [
        *format_table(shown, align=align, indent=indent),
        *wrapped(sentence_on_the_rest(noun, missing, where), width),
    ]


def sentence_on_the_rest(noun: str, missing: Sequence[str], where: str) -> str:
    """ "Ranks 1 and 320 do not fit into this width; results.json has them."; "" if none is missing."""
    one = len(missing) == 1
    name = noun.capitalize() if one else f"{noun.capitalize()}s"
    do, them = ("does", "it") if one else ("do", "them")
    return f"{name} {listing(list(missing))} {do} not fit into this width; {where} {them}." if missing else ""


def in_ascii(cell: TableCell) -> str:
    text = cell if isinstance(cell, str) else cell[0]
    for sign, plain in ((NO_BREAK, " "), (" – ", " to "), ("–", "-"), ("\u2212", "-")):
        text = text.replace(sign, plain)
    return text
