"""The score of a blind test on the report: its sentences, and a row for each voter, whatever they call themselves."""

import builders
from blind_builders import score, voter
from builders import HOSTILE
from page_reader import PageReader

from deltarank.report import page_html
from deltarank.results import BlindScore, Caught


def page(*scores: BlindScore) -> PageReader:
    return PageReader(page_html([builders.results(builders.model(layers=1), blind=scores)]))


def test_the_page_has_the_sentences_and_a_row_for_each_voter():
    words = page(score(voter("Ada"), voter("Ben"), together=voter("together"), notes=("Ada was careless",))).words

    assert "Blind test 17 of 24 right. Liked better: the finetune : rank 64 : neither" in words
    assert "Ada 17 of 24 3.2 % 2.5 41 % to 91 % 3 of 3 1 of 3 7:3:2" in words
    assert "together 17 of 24" in words
    assert "Ada was careless" in words
    assert "f" * 64 in words


def test_several_tests_of_a_run_have_titles():
    words = page(score(voter("Ada")), score(voter("Ben"), candidate="rank 8")).words

    assert "rank 64 against the finetune, scored on 2026-11-29 17 of 24 right." in words
    assert "rank 8 against the finetune, scored on 2026-11-29 17 of 24 right." in words


def test_what_was_not_voted_on_is_a_dash():
    words = page(score(voter("Ada", told=None, preferred=None, sure=Caught(0, 0), same_model=Caught(0, 0)))).words

    assert "Ada – – – – – – –" in words


def test_without_a_test_there_is_no_section():
    assert not any(attributes.get("id") == "blind" for _, attributes in page().elements)


def test_hostile_names_and_sentences_stay_text():
    shown = page(score(voter(HOSTILE), sentences=(HOSTILE,), notes=(HOSTILE,)))

    assert len(shown.raw["script"]) == 3
    assert not any(tag == "img" for tag, _ in shown.elements)
