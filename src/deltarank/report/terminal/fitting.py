"""What fits into the width of a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from deltarank.report.view.table import TableCell
from deltarank.report.view.text import NO_BREAK, unbroken
from deltarank.results import listing, shorten


def wrapped(text: str, width: int, *, indent: str = "") -> list[str]:
    """Lines of at most `width` columns, all but the first after `indent`. A percent sign stays with its number."""
    lines = textwrap.wrap(unbroken(text), width, subsequent_indent=indent, break_on_hyphens=False)
    return [line.replace(NO_BREAK, " ") for line in lines]


def columns_that_fit(
    rows: Sequence[list[str]], needed: Sequence[int], width: int, *, name: int, gap: int, minimum: int = 0
) -> list[list[str]]:
    """The rows with the columns that fit into `width`: first the names, then `needed` up to one that does not fit.

    Names have `name` letters at least, and are cut where they need more than what is left.
    """
    widths = [max(minimum, *(len(row[i]) for row in rows)) for i in range(len(rows[0]))]
    free_columns = width - min(widths[0], name)
    chosen = []
    for column in needed:
        if widths[column] + gap > free_columns:
            break
        free_columns -= widths[column] + gap
        chosen.append(column)
    name_width = free_columns + min(widths[0], name)
    return [[shorten(row[0], most=name_width), *(row[i] for i in sorted(chosen))] for row in rows]


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
