"""What a calibration reached, as figures that were never measured."""

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
