"""Tables in plain text: columns stand apart, whatever is in them."""

from hypothesis import given
from hypothesis import strategies as st

from deltarank.results import format_table

cells = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=12)


@given(st.lists(st.tuples(cells, cells, cells), min_size=1), st.sampled_from(["<", "<>", "<><", ">"]))
def test_columns_never_run_together(rows: list[tuple[str, str, str]], align: str) -> None:
    lines = format_table(rows, align=align, gap=1, minimum=(3, 0))

    assert [tuple(line.split()) for line in lines] == rows


def test_columns_are_aligned_each_in_its_own_way() -> None:
    rows = [("name", "kept"), ("q", "9 %"), ("down", "100 %")]

    assert format_table(rows, align="<>", indent=1) == [" name   kept", " q       9 %", " down  100 %"]


def test_colour_codes_take_no_room() -> None:
    assert format_table([("\x1b[31mred\x1b[0m", "x"), ("blue", "y")]) == ["\x1b[31mred\x1b[0m   x", "blue  y"]


def test_a_table_without_rows_has_no_lines() -> None:
    assert format_table([]) == []
