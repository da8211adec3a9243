"""How much of a delta may be the rounding of a quantised base; only the size of the delta can tell."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from deltarank.jobs.compare.noise_edges import SURELY
from deltarank.results import MatrixResult, percent
from deltarank.runtime import Step


def quantised_base_notes(steps: Sequence[Step], matrices: Mapping[str, MatrixResult]) -> tuple[str, ...]:
    """A note, if some matrices of the base are quantised and their deltas were measured."""
    rounded = [
        (step.pair.base.rounding_error, matrices[step.pair.name]) for step in steps if step.pair.base.rounding_error
    ]
    seen = [(error, matrix) for error, matrix in rounded if matrix.has_losses and matrix.base_frobenius]
    base = math.fsum(float(matrix.base_frobenius or 0.0) ** 2 for _, matrix in seen)
    delta = math.fsum(matrix.energy for _, matrix in seen)
    made = math.fsum((error * float(matrix.base_frobenius or 0.0)) ** 2 for error, matrix in seen)
    if not base or not delta:
        return ()
    sizes = (
        f"where the base is quantised, the norm of the delta is {percent(math.sqrt(delta / base))} of the base's; "
        f"rounding to that format alone makes {percent(math.sqrt(made / base))}"
    )
    if delta < SURELY * made:
        advice = "The finetune was trained from this quantised copy, so the delta does not contain the rounding"
    elif made >= SURELY * delta:
        advice = "Most of this delta may be that rounding: give the base from before it was quantised"
    else:
        share = percent(made / delta)
        advice = f"Unless the finetune was trained from this quantised copy, {share} of the energy is rounding"
    return (f"{sizes}. {advice}",)
