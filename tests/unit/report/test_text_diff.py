"""Two answers word by word."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltarank.report.view.text_diff import difference, words_of

words = st.lists(st.sampled_from(["a", "b", "c", "deep", "sea", ",", "."]), max_size=30)


@given(st.text())
def test_words_join_to_the_text(text: str) -> None:
    assert text == "".join(words_of(text))


@given(words, words)
def test_blocks_are_the_same_words_in_both_and_in_order(left: list[str], right: list[str]) -> None:
    found = difference(left, right)
    ends = (0, 0)
    for a, b, n in found.blocks:
        assert n > 0
        assert a >= ends[0]
        assert b >= ends[1]
        assert left[a : a + n] == right[b : b + n]
        ends = (a + n, b + n)


@given(words)
def test_a_text_does_not_differ_from_itself(text: list[str]) -> None:
    found = difference(text, text)
    assert found.same_first_words == len(text)
    assert found.is_same_as(text)
    assert found.blocks == (((0, 0, len(text)),) if text else ())


@given(words, words)
def test_a_longer_text_agrees_to_the_end_of_the_shorter(start: list[str], right: list[str]) -> None:
    found = difference(start, start + right)
    assert found.same_first_words == len(start)


def test_a_word_changed_leaves_the_rest() -> None:
    left, right = (words_of(text) for text in ("the big cat sat on a mat", "the big dog sat on a mat"))
    assert difference(left, right).blocks == ((0, 0, 2), (3, 3, 4))


def test_a_single_word_met_by_chance_is_not_common() -> None:
    left = words_of("Mara took the rope and went home early")
    right = words_of("Nobody in that town had ever seen the like before")
    assert difference(left, right).blocks == ()


@pytest.mark.parametrize(
    ("text", "count"),
    [("", 0), ("   ", 1), ("a b", 2), ("你好吗", 3), ("no, never", 3), ("ab12 cd\n\n", 3), ("สวัสดี", 6)],
)
def test_what_counts_as_a_word(text: str, count: int) -> None:
    assert len(words_of(text)) == count


def test_spaces_do_not_make_a_difference() -> None:
    assert difference(words_of("one two"), words_of("one\n two")).same_first_words == 2


@given(st.text(max_size=40), st.text(max_size=40))
def test_spans_cut_both_texts_where_a_script_would(left: str, right: str) -> None:
    a, b = words_of(left), words_of(right)
    wide_left, wide_right = (text.encode("utf-16-le", "surrogatepass") for text in (left, right))
    for start, end, other_start, other_end in difference(a, b).spans(a):
        ours = wide_left[2 * start : 2 * end].decode("utf-16-le", "surrogatepass")
        theirs = wide_right[2 * other_start : 2 * other_end].decode("utf-16-le", "surrogatepass")
        assert ours.split() == theirs.split() or "".join(ours.split()) == "".join(theirs.split())
