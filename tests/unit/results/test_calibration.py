"""The sentences on a calibration: each is true of what was measured."""

from dataclasses import replace

import pytest

from calibrations import calibration, score
from deltarank.results import CalibrationScore


def test_an_adapter_that_is_nearer_everywhere_has_no_warning() -> None:
    assert calibration(score(), score()).warnings == ()


@pytest.mark.parametrize(
    ("other_text", "other", "klds"),
    [
        (score(calibrated=0.7), "plain extraction", "0.7 against 0.5"),
        (score(base=0.1), "the base without an adapter", "0.2 against 0.1"),
    ],
)
def test_what_is_nearer_to_the_finetune_is_said(other_text: CalibrationScore, other: str, klds: str) -> None:
    found = calibration(score(), other_text)
    sentence = f"On text of another kind, it is farther from the finetune than {other}: {klds} nats per token."
    assert found.warnings == (sentence,)
    assert sentence in found.sentences


def test_that_nothing_better_was_found_is_said_only_where_it_was_looked_for() -> None:
    plain = score(calibrated=0.5)
    assert "found nothing better" in calibration(plain, plain, steps=0).sentences[-1]
    assert "No step of gradient descent was made" in calibration(plain, plain, steps=0, made=0).sentences[-1]


def test_every_figure_names_what_it_is_of() -> None:
    held = replace(score(base=0.83, plain=0.059, calibrated=0.021), kld_any_rank=0.034)
    other = replace(score(plain=0.4, calibrated=0.5), documents=48, groups=16)
    distances, held_out, other_text = calibration(held, other).sentences[:3]
    assert distances == (
        "0.021 nats per token from the finetune, on text that it was not fitted to; plain extraction at this rank "
        "0.059, plain extraction at any rank 0.034; base 0.83."
    )
    assert held_out == (
        "That is on 10 documents (95 % interval 0.0189 to 0.0231): 64 % below plain extraction at this rank (95 % "
        "interval 59 to 69 %)."
    )
    assert other_text == (
        "On another kind of text (48 documents in 16 groups, built-in passages): 0.5 (95 % interval 0.45 to 0.55); "
        "plain extraction at this rank 0.4; base 1. That is 25 % above plain extraction at this rank (95 % interval "
        "20 to 30 %)."
    )


def test_no_cause_is_named_that_was_not_measured() -> None:
    said = calibration(score(), score()).sentences
    assert "Its factors were fitted to the finetune's predictions, not to its weights." in " ".join(said)
    assert "left out" not in " ".join(said)


def test_of_one_document_no_interval_is_said() -> None:
    one = replace(score(), documents=1, groups=1, low=None, high=None, gain_low=None, gain_high=None)
    assert calibration(one, one).sentences[1] == "That is on 1 document: 60 % below plain extraction at this rank."
    alike = replace(one, kld_calibrated=0.5, gain=0.0)
    assert calibration(alike, alike).sentences[1] == "That is on 1 document."
