"""The demo's text: what every Python has, taken apart, cut, and partly held back."""

import ast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltarank.demo.text import _manual, _text, read_texts, split_docstrings
from deltarank.errors import JobError
from refusals import refused

LIMIT = 250_000


def test_code_and_prose_are_told_apart() -> None:
    code, prose = split_docstrings('"""Module."""\nx = 1\n\ndef f():\n    """F.\n\n    More.\n    """\n    return x\n')

    assert "return x" in code
    assert '"""' not in code
    assert prose == "Module.\n\nF.\n\nMore."


def test_a_doc_string_that_shares_its_line_with_code_stays() -> None:
    source = 'def f(): "says so"\n'

    assert split_docstrings(source) == (source, "")


def test_strings_that_are_no_doc_strings_stay() -> None:
    source = 'x = """\nnot documentation\n"""\n'

    assert split_docstrings(source) == (source, "")


@pytest.mark.parametrize("source", ["def", "x = '\\0", "\x00", "(" * 300])
def test_what_does_not_parse_is_an_error_that_readers_pass_over(source: str) -> None:
    with pytest.raises((SyntaxError, ValueError, RecursionError, MemoryError)):
        split_docstrings(source)


def test_the_three_texts_are_this_python_s_own() -> None:
    texts = read_texts(LIMIT)

    for text in (texts.code, texts.manual, texts.docstrings):
        train, held = sum(map(len, text.train)), sum(map(len, text.held_out))
        assert 20_000 < train + held <= LIMIT
        assert held >= (train + held) / 10
        assert train > 0


def test_the_same_python_gives_the_same_texts() -> None:
    assert read_texts(LIMIT) == read_texts(LIMIT)


def test_code_has_no_doc_strings_of_modules() -> None:
    for document in read_texts(LIMIT).code.train[:5]:
        try:
            tree = ast.parse(document)
        except SyntaxError:
            continue  # a body that was all doc string is empty now
        assert ast.get_docstring(tree) is None


def test_topics_of_the_manual_do_not_quote_each_other() -> None:
    topics = [{part for part in topic.split("\n\n") if part.strip()} for topic in _manual()]

    assert sum(map(len, topics)) == len(set().union(*topics))


@given(st.lists(st.text("ab", min_size=1, max_size=50), min_size=2, max_size=20))
def test_held_out_text_is_never_trained_on_and_never_all(documents: list[str]) -> None:
    limit = 2 * sum(map(len, documents))
    text = _text("code", [*documents, "c" * limit], limit)

    assert list(text.train + text.held_out) == [*documents, ("c" * limit)[: limit - sum(map(len, documents))]]
    assert text.held_out


def test_a_python_without_sources_is_refused() -> None:
    with refused("demo-no-text", JobError):
        _text("code", ["short"], 2_000_000)
