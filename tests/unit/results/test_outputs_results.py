"""What `outputs` found, in plain numbers and back."""

from __future__ import annotations

import json
import re

import pytest

from deltarank.errors import ResultsError
from deltarank.results import (
    AttributionResult,
    BlindBound,
    CandidateKind,
    CandidateResult,
    Divergence,
    DocumentScore,
    Excerpt,
    Histogram,
    Interval,
    Logits,
    Outputs,
    Part,
    Sample,
    SliceScore,
    Text,
    TwoSampleTest,
    Writing,
)

DIVERGENCE = Divergence(0.1, None, 0.2, 0.05, 0.2, 0.3, 0.5, 0.9, 1.1)
LOGITS = Logits(
    text="own answers",
    tokens=120,
    documents=3,
    kld=DIVERGENCE,
    kld_reverse=DIVERGENCE,
    same_top_p=Interval(0.9, 0.8, 0.95),
    rms_delta_p=Interval(0.05),
    mean_delta_p=-0.01,
    ppl=7.0,
    reference_ppl=6.5,
    log_ppl_ratio=Interval(0.07, 0.05, 0.09),
    kept=Interval(0.8, 0.7, 0.9),
    tokens_to_tell=30.0,
    blind=(BlindBound(100, 0.7, 0.8),),
    by_document=(DocumentScore("a", 40, 0.1),),
    by_position=(SliceScore(0, 64, 30, 0.1),),
    by_confidence=(SliceScore(0.0, 0.25, 30, 0.4),),
    histogram=Histogram((-6.0, -5.0), (120,)),
)
OUTPUTS = Outputs(
    reference="a finetune",
    texts=(Text("own answers", 3, 120, own=True),),
    candidates=(
        CandidateResult("base", CandidateKind.BASE, logits=(LOGITS,)),
        CandidateResult(
            "rank 8", CandidateKind.RANK, 8, (LOGITS,), Writing(2, 4, 0.5, 0.6, 30.0, TwoSampleTest(0.6, 0.1, 99))
        ),
    ),
    again=Writing(2, 4, 0.5, 0.6, 30.0),
    samples=(Sample("Why?", "chat", {"finetune": "Because.", "rank 8": "It is."}),),
    excerpts=(Excerpt("own answers", "a", ("Be", "cause"), {"rank 8": (None, 0.2)}),),
    attribution=(
        AttributionResult(8, "module", "own answers", (Part("mlp", None, "mlp", 0.1, 2.0, 0.5, 0.4),), 0.2, 0.5, None),
    ),
    sentences=("It speaks like itself.",),
    settings={"seed": 0},
)


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
