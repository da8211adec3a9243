"""Cross-validated logistic regression, fitted under many labellings of the same texts at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deltarank.divergence.arrays import FloatArray

_MAX_STEPS = 200
_TOLERANCE = 1e-6


def cross_validated_log_odds(
    features: FloatArray, labels: FloatArray, folds: NDArray[np.intp], *, inverse_penalty: float
) -> FloatArray:
    """The log odds of label 1 for each text, from a logistic regression fitted to the texts of the other folds.

    Args:
        features: (texts, features).
        labels: (texts, labellings) of 0 and 1; each column is one way to label the texts.
        folds: (texts,), the fold of each text.
        inverse_penalty: C of `fit_logistic_regressions`.

    Returns:
        (texts, labellings).
    """
    log_odds = np.empty(labels.shape)
    for fold in np.unique(folds):
        held_out = folds == fold
        weights = fit_logistic_regressions(features[~held_out], labels[~held_out], inverse_penalty=inverse_penalty)
        log_odds[held_out] = features[held_out] @ weights
    return log_odds


def fit_logistic_regressions(features: FloatArray, labels: FloatArray, *, inverse_penalty: float) -> FloatArray:
    """For each labelling, the w that minimises ||w||^2 / 2 + C sum log(1 + exp(-y (x, w))), y = 2 label - 1.

    C is `inverse_penalty`, scikit-learn's C. The curvature of the logistic loss is at most 1/4, so with X = U S V' all
    labellings share the upper bound 1 + C s^2 / 4 of the curvature in the directions of V, and a step with that bound
    lowers each objective (Bohning and Lindsay 1988). So one step is two matrix products, for one labelling as for
    thousands, where Newton's method would solve a system for each.

    Returns:
        (features, labellings).
    """
    left, values, right = np.linalg.svd(features, full_matrices=False)
    nonzero = values > 1e-9 * max(values[:1], default=0.0)
    rotated, right = left[:, nonzero] * values[nonzero], right[nonzero]
    curvature = (1 + inverse_penalty * values[nonzero] ** 2 / 4)[:, None]
    weights = np.zeros((len(right), labels.shape[1]))
    for _ in range(_MAX_STEPS):
        residuals = labels - _sigmoid(rotated @ weights)
        step = (inverse_penalty * (rotated.T @ residuals) - weights) / curvature
        weights += step
        if np.abs(step).max(initial=0.0) < _TOLERANCE:
            break
    unrotated: FloatArray = right.T @ weights
    return unrotated


def _sigmoid(log_odds: FloatArray) -> FloatArray:
    """Written with tanh, which neither overflows nor needs a case for each sign."""
    sigmoid: FloatArray = 0.5 * np.tanh(0.5 * log_odds)
    sigmoid += 0.5
    return sigmoid
