"""A table as plain text, for the page and the terminal alike."""

from __future__ import annotations

from dataclasses import dataclass

TableCell = str | tuple[str, str]
"""A text, or a text and another one in grey beside it."""


@dataclass(frozen=True)
class TableRow:
    """A row under its name. `rank_index` ties it to a rank of the page; `is_text` lets its cells wrap."""

    name: str
    cells: tuple[TableCell, ...]
    rank_index: int | None = None
    is_text: bool = False


@dataclass(frozen=True)
class Table:
    """Rows in groups. The first heading is over the names of the rows.

    `rank_indices` tie columns to ranks of the page.
    """

    headings: tuple[str, ...]
    groups: tuple[tuple[TableRow, ...], ...]
    caption: str = ""
    rank_indices: tuple[int | None, ...] = ()

    @property
    def rows(self) -> tuple[TableRow, ...]:
        return tuple(row for group in self.groups for row in group)

    def transposed(self, first_heading: str) -> Table:
        """Columns as rows, with `first_heading` over their names."""
        rows = self.rows
        columns = zip(self.headings[1:], zip(*(row.cells for row in rows), strict=True), strict=True)
        return Table(
            (first_heading, *(row.name for row in rows)),
            (tuple(TableRow(name, cells) for name, cells in columns),),
            self.caption,
            (None, *(row.rank_index for row in rows)),
        )
