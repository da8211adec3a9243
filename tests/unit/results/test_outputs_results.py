"""What `outputs` found, in plain numbers and back."""

import json
import re

import pytest

from deltarank.errors import ResultsError
from deltarank.results import Outputs
from unit.results.whole_results import OUTPUTS


def test_outputs_come_back_equal_from_json() -> None:
    assert Outputs.from_json(OUTPUTS.to_json()) == OUTPUTS


def test_what_a_later_version_added_is_passed_over() -> None:
    plain = OUTPUTS.to_plain() | {"aura": 3}
    plain["candidates"][0]["logits"][0]["kld"]["p9999"] = 1.0

    assert Outputs.from_json(json.dumps(plain)) == OUTPUTS


@pytest.mark.parametrize("plain", [{}, {"reference": "x", "texts": 3, "candidates": []}, {"reference": 1}])
def test_something_else_is_refused(plain: dict[str, object]) -> None:
    with pytest.raises(ResultsError, match="not the outputs"):
        Outputs.from_json(json.dumps(plain))


def test_a_rank_that_is_a_word_is_refused_when_it_is_read() -> None:
    plain = OUTPUTS.to_plain()
    plain["candidates"][1]["rank"] = "64"
    with pytest.raises(ResultsError, match=re.escape("Expected `int | null`, got `str` - at `$.candidates[1].rank`")):
        Outputs.from_json(json.dumps(plain))


def test_what_is_read_is_written_again_byte_for_byte() -> None:
    """Edges of slices are whole numbers or not, as they were."""
    assert Outputs.from_json(OUTPUTS.to_json()).to_json() == OUTPUTS.to_json()


def test_an_unknown_candidate_is_named() -> None:
    with pytest.raises(KeyError, match="rank 9"):
        OUTPUTS.candidate("rank 9")
