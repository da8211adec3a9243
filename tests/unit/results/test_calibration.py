"""The sentences on a calibration: each is true of what was measured."""

import pytest

from deltarank.results import Calibration, CalibrationMethod, CalibrationScore, WeightPlacement


def score(*, base: float = 1.0, plain: float = 0.5, calibrated: float = 0.2) -> CalibrationScore:
    gain = 1 - calibrated / plain
    return CalibrationScore(
        documents=10,
        groups=10,
        tokens=1000,
        kld_base=base,
        kld_plain=plain,
        kld_any_rank=None,
        kld_calibrated=calibrated,
        low=0.9 * calibrated,
        high=1.1 * calibrated,
        same_top_plain=0.8,
        same_top_calibrated=0.9,
        gain=gain,
        gain_low=gain - 0.05,
        gain_high=gain + 0.05,
    )


def calibration(
    held_out: CalibrationScore, other_text: CalibrationScore, *, steps: int = 20, made: int = 20
) -> Calibration:
    return Calibration(
        texts=("own",),
        tokens=1000,
        method=CalibrationMethod.KL_DISTILLATION if steps else CalibrationMethod.PLAIN,
        steps=steps,
        steps_made=made,
        placement=WeightPlacement.WHOLE,
        frozen=0,
        ridge=None,
        seed=0,
        fitted=30,
        chosen=10,
        held_out=held_out,
        other_text=other_text,
        rank_equivalent=None,
    )


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
