"""The answer of `which-base`, as JSON and back."""

import json
from dataclasses import replace

import pytest

from deltarank.errors import ResultsError
from deltarank.results import BaseChoice, BaseKind
from unit.results.whole_results import CHOICE


def test_json_gives_back_an_equal_choice() -> None:
    found = BaseChoice.from_json(CHOICE.to_json())

    assert found == CHOICE
    assert found.to_json() == CHOICE.to_json()


def test_the_base_is_the_nearest_candidate_whatever_the_file_says() -> None:
    data = json.loads(CHOICE.to_json())
    assert data["base"] == "org/one"
    found = BaseChoice.from_json(json.dumps(data | {"base": "org/far"}))

    assert found.base == CHOICE.candidates[2]


@pytest.mark.parametrize("kind", [BaseKind.NONE, BaseKind.TOO_CLOSE])
def test_without_an_answer_there_is_no_base(kind: BaseKind) -> None:
    assert replace(CHOICE, kind=kind).base is None


@pytest.mark.parametrize("change", [{"candidates": []}, {"kind": "mine"}, {"candidates": ["x"]}, {"seed": "1"}])
def test_something_else_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ResultsError) as caught:
        BaseChoice.from_json(json.dumps(json.loads(CHOICE.to_json()) | change))

    assert caught.value.slug == "results-unreadable"
