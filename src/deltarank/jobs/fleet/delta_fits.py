"""A delta as a sum of few others: nonnegative least squares on inner products, one more part at a time.

A linear merge is a sum of deltas: W = W0 + sum of w_i (W_i - W0) (task arithmetic, Ilharco et al. 2023, "Editing Models
with Task Arithmetic"). Sketches are linear, so that the same sum holds between the sketches, up to the rounding of the
stored weights. Of C = A / 2 + B / 2 follows A = 2 C - B as well; with coefficients of at least 0 only the first holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

MOST_PARTS = 8

EXACT = 1e-4
"""A residual that is not made smaller: sketches are stored in float32, and weights seldom in more."""

SIGNIFICANT = 5.0
"""A part must explain more of the residual than an unrelated delta does, by this many standard errors of a cosine."""


@dataclass(frozen=True)
class Fit:
    """sum of weights x deltas, by index; `residual` is ||D - sum|| / ||D||."""

    weights: dict[int, float]
    residual: float


def fit_delta(gram: np.ndarray, target: int, candidates: Sequence[int], *, standard_error: float) -> Fit:
    """The fit of one delta by few of the others.

    Args:
        gram: inner products of all deltas.
        candidates: the indices that may take part, in the order in which ties are decided.
        standard_error: of a cosine between unrelated deltas.
    """
    least = max((SIGNIFICANT * standard_error) ** 2, 1e-9)  # of the residual's energy
    best = Fit({}, 1.0)
    while len(best.weights) < MOST_PARTS and best.residual > EXACT:
        found = _with_another(gram, target, best, candidates)
        if found.residual**2 > best.residual**2 * (1 - least):
            break
        best = found
    return _without_needless(gram, target, best, least)


def _with_another(gram: np.ndarray, target: int, fit: Fit, candidates: Sequence[int]) -> Fit:
    """With the candidate that is most alike to what the fit leaves over (orthogonal matching pursuit)."""
    others = [each for each in candidates if each not in fit.weights]
    if not others:
        return fit
    parts = list(fit.weights)
    left = gram[others, target] - gram[np.ix_(others, parts)] @ np.array(list(fit.weights.values()))
    best = others[int(np.argmax(left / np.sqrt(gram[others, others])))]
    return _fit(gram, target, [*parts, best])


def _without_needless(gram: np.ndarray, target: int, fit: Fit, least: float) -> Fit:
    """Drops the parts that later ones made needless."""
    while len(fit.weights) > 1:
        fewer = [_fit(gram, target, [i for i in fit.weights if i != left]) for left in fit.weights]
        found = min(fewer, key=lambda each: each.residual)
        if fit.residual**2 <= found.residual**2 * (1 - least):
            break
        fit = found
    return fit


def _fit(gram: np.ndarray, target: int, parts: Sequence[int]) -> Fit:
    weights, lost = least_squares(gram[np.ix_(parts, parts)], gram[parts, target], gram[target, target])
    kept = {part: float(weight) for part, weight in zip(parts, weights, strict=True) if weight > 0}
    return Fit(kept, float(np.sqrt(lost / gram[target, target])))


def least_squares(among: np.ndarray, with_target: np.ndarray, energy: float) -> tuple[np.ndarray, float]:
    """Coefficients w >= 0 that minimise ||y - X w||^2, and that minimum, from X'X, X'y and ||y||^2."""
    values, vectors = np.linalg.eigh(among)
    roots = np.sqrt(np.maximum(values, 1e-12 * max(values[-1], np.finfo(float).tiny)))
    factor = (vectors * roots).T  # factor' factor = X'X
    weights, _ = nnls(factor, (vectors.T @ with_target) / roots)
    lost = energy - 2 * weights @ with_target + weights @ among @ weights
    return weights, float(min(max(lost, 0.0), energy))
