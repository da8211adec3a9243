"""What a quantised base leaves in a delta: headers cannot tell, the delta's size can."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from deltarank.results import MatrixResult, percent
from deltarank.runtime import Step

SURELY = 0.5
"""Of the energy that rounding makes: a finetune of a finer copy has all of it in its delta, beside its own change."""


def words_on_base(steps: Sequence[Step], matrices: Mapping[str, MatrixResult]) -> tuple[str, ...]:
    """A sentence, if some matrices of the base are quantised and their deltas were measured."""
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
        f"where the base is quantised the delta is {percent(math.sqrt(delta / base))} of the base's size, and rounding "
        f"to that format alone makes {percent(math.sqrt(made / base))}"
    )
    if delta < SURELY * made:
        return (f"{sizes}: the finetune began from this very copy, and that rounding is not in the delta",)
    if made >= SURELY * delta:
        return (f"{sizes}: most of this delta may be that rounding; give the base as it was before it was quantised",)
    return (f"{sizes}: unless the finetune began from this very copy, {percent(made / delta)} of the energy is that",)
