"""The rank that a merged LoRA left in all of its matrices, told apart from the spectrum of a full finetune."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from statistics import median

from deltarank.results import MatrixResult

LOW_RANK_SHARE = 0.8
"""The share of the changed matrices that must have a low rank."""

OTHER_ENERGY = 0.01
"""The largest share of the energy in matrices without a low rank: one of fourteen that was trained whole has more."""

COMMON_SHARE = 0.4
"""The share of them that must have the same rank. The weakest directions of a trained LoRA may be lost to rounding."""

STEEPEST = 3
"""Singular values that fall as i^-3 or more slowly may be a full finetune's: few of them are above the noise edge, and
pass from the r-th to the next by a factor of (1 + 1/r)^3."""

WIDE_GAP = 2.0
"""Where the values fall by this factor at the noise edge, the ranks may differ between matrices (rank patterns)."""

NOISE_TOLERANCE = 1.1
"""By how much the energy below the noise edge may exceed what rounding explains."""

HIDDEN_TOLERANCE = 1.25
"""The same where some directions of a LoRA may be below the noise edge, whose energy adds to that of the rounding."""

EXACT_FALL = 1000.0
"""Where the values of every matrix fall by this factor at one and the same rank, as below the rounding of float32, the
rank is stated without "about"."""

FORMAT_TOLERANCE = 2.0
"""The same for quantised formats, whose error depends on how the weights are distributed."""

_PLAIN = frozenset({"bfloat16", "float16", "float32", "float64"})


def without_base_rounding(measured: Sequence[MatrixResult]) -> list[MatrixResult]:
    """The matrices with the rounding of a quantised base among their noise, where they may contain it."""
    return [_without_base_rounding(matrix) for matrix in measured]


def _without_base_rounding(matrix: MatrixResult) -> MatrixResult:
    if matrix.base_rounding is None or matrix.base_noise_edge is None:
        return matrix
    above = sum(value > matrix.base_noise_edge for value in matrix.singular_values)
    is_known = above < max(len(matrix.singular_values), 1) or len(matrix.singular_values) >= matrix.max_rank
    floor = (matrix.rounding_floor or 0.0) + matrix.base_rounding
    return replace(matrix, signal_rank=above if is_known else None, rounding_floor=floor)


def common_rank(measured: Sequence[MatrixResult]) -> int | None:
    """The rank of a LoRA that explains nearly all matrices up to rounding; None if there is no such rank.

    The singular values of a full finetune fall evenly, and pass the noise edge at another rank in each matrix. Those of
    a LoRA end at its rank, which is the same in most matrices.
    """
    most_common = Counter(m.signal_rank for m in measured if m.signal_rank).most_common(1)
    usual = most_common[0][0] if most_common else 0
    low = [m for m in measured if m.signal_rank is not None and _is_low(m, usual)]
    ranks = sorted(m.signal_rank or 0 for m in low)
    others = math.fsum(m.energy for m in measured) - math.fsum(m.energy for m in low)
    is_nearly_all = others <= OTHER_ENERGY * math.fsum(m.energy for m in measured)
    if not is_nearly_all or len(low) < LOW_RANK_SHARE * len(measured) or not ranks[-1]:
        return None
    rank, number = Counter(rank for rank in ranks if rank).most_common(1)[0]
    if number >= COMMON_SHARE * len(low) and _median_fall([m for m in low if m.signal_rank == rank], least=1.0) >= 1:
        return rank
    if _median_fall([m for m in low if m.signal_rank], least=WIDE_GAP) >= 1:
        return max(ranks[math.ceil(LOW_RANK_SHARE * len(low)) - 1], 1)
    return None


def is_exact(measured: Sequence[MatrixResult], rank: int) -> bool:
    """Whether every matrix that changed has this rank, and nothing beyond it that could be another direction."""
    changed = [matrix for matrix in measured if matrix.energy > 0]
    return all(matrix.signal_rank == rank and _ends_at(matrix, rank) for matrix in changed)


def _ends_at(matrix: MatrixResult, rank: int) -> bool:
    values = matrix.singular_values
    return rank < len(values) and values[rank - 1] >= EXACT_FALL * values[rank]


def _median_fall(matrices: Sequence[MatrixResult], *, least: float) -> float:
    return median(_fall(matrix, least) for matrix in matrices)


def _fall(matrix: MatrixResult, least: float) -> float:
    """The factor by which the singular values fall at the noise edge, divided by the least that a LoRA shows."""
    rank, values = matrix.signal_rank or 0, matrix.singular_values
    if rank >= len(values) or values[rank] == 0:
        return math.inf
    return values[rank - 1] / values[rank] / max((1 + 1 / rank) ** STEEPEST, least)


def _is_low(matrix: MatrixResult, usual: int) -> bool:
    """Whether few singular values are above the noise edge, and rounding explains the rest.

    Args:
        usual: the rank that most matrices have. Here, too, so many directions may have changed, of which those without
            a singular value above the noise edge are each smaller than it.
    """
    assert matrix.signal_rank is not None
    if matrix.max_rank > 4 and matrix.signal_rank > matrix.max_rank / 2:
        return False
    beyond = matrix.energy - math.fsum(s * s for s in matrix.singular_values[: matrix.signal_rank])
    is_plain = _PLAIN.issuperset(matrix.dtype.split(" -> "))
    floor = (matrix.rounding_floor or 0.0) * matrix.energy
    explained = (NOISE_TOLERANCE if is_plain else FORMAT_TOLERANCE) * floor
    hidden = max(usual - matrix.signal_rank, 0) * (matrix.noise_edge or 0.0) ** 2
    return beyond <= max(explained, min(explained + hidden, HIDDEN_TOLERANCE * floor)) + 1e-3 * matrix.energy
