"""Can texts of two kinds be told apart? One logistic regression under many labellings at once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_MOST_STEPS = 200
_SETTLED = 1e-6


def held_out_scores(features: Floats, labels: Floats, folds: NDArray[np.intp], *, strength: float) -> Floats:
    """What a logistic regression says of each text when it was fitted to the texts of the other folds.

    Args:
        features: (texts, features).
        labels: (texts, labellings) of 0 and 1: each column is a way to label the texts.
        folds: (texts,): the fold of each.
        strength: C, the weight of the likelihood beside ||w||^2 / 2.

    Returns:
        (texts, labellings): the log of the odds for label 1.
    """
    scores = np.empty(labels.shape)
    for fitted, held_out in _splits(folds):
        weights = fitted_weights(features[fitted], labels[fitted], strength=strength)
        scores[held_out] = features[held_out] @ weights
    return scores


def _splits(folds: NDArray[np.intp]) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    for fold in np.unique(folds):
        yield folds != fold, folds == fold


def fitted_weights(features: Floats, labels: Floats, *, strength: float) -> Floats:
    """For each labelling, the w that minimises ||w||^2 / 2 + C sum log(1 + exp(-y (x, w))), y = 2 label - 1.

    No labelling has a Newton step of its own: the curvature of the logistic loss is at most 1/4, so that with
    X = U S V' all share the bound 1 + C s^2 / 4 in the directions of V, and every step takes each labelling down
    (Bohning and Lindsay 1988). A step is two products of matrices, for thousands of labellings as for one.
    """
    left, values, right = np.linalg.svd(features, full_matrices=False)
    kept = values > 1e-9 * max(values[:1], default=0.0)
    turned, right = left[:, kept] * values[kept], right[kept]
    bound = (1 + strength * values[kept] ** 2 / 4)[:, None]
    weights = np.zeros((len(right), labels.shape[1]))
    for _ in range(_MOST_STEPS):
        residuals = labels - _sigmoid(turned @ weights)
        step = (strength * (turned.T @ residuals) - weights) / bound
        weights += step
        if np.abs(step).max(initial=0.0) < _SETTLED:
            break
    found: Floats = right.T @ weights
    return found


def _sigmoid(odds: Floats) -> Floats:
    half: Floats = 0.5 * np.tanh(0.5 * odds)
    half += 0.5
    return half
