"""Tables in plain text, for terminals."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeVar

_T = TypeVar("_T")
_COLOUR_CODE = re.compile(r"\x1b\[[0-9;]*m")


def format_table(
    rows: Sequence[Sequence[str]],
    *,
    align: str = "<",
    minimum: Sequence[int] = (0,),
    gap: int = 2,
    indent: int = 0,
) -> list[str]:
    """One line per row. A column is as wide as its widest cell; lines have no trailing spaces.

    Args:
        rows: The cells of each row, header included. All rows have equally many. Colour codes take no room.
        align: "<" or ">" for each column; the last one also holds for all further columns.
        minimum: The least width of each column; the last one also holds for all further columns.
        gap: Spaces between two columns.
        indent: Spaces before each line.

    Returns:
        The lines, without line ends.
    """
    widths = [max(_item(minimum, i), *map(_length, column)) for i, column in enumerate(zip(*rows, strict=True))]
    lines = ((" " * gap).join(_padded(cell, widths[i], _item(align, i)) for i, cell in enumerate(row)) for row in rows)
    return [(" " * indent + line).rstrip() for line in lines]


def _item(values: Sequence[_T], column: int) -> _T:
    return values[min(column, len(values) - 1)]


def _length(cell: str) -> int:
    return len(_COLOUR_CODE.sub("", cell))


def _padded(cell: str, width: int, align: str) -> str:
    space = " " * (width - _length(cell))
    return space + cell if align == ">" else cell + space
