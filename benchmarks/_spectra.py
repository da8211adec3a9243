"""Adversarial deltas of known kind, in float64: each maker is given (rows, columns, generator).

The truth is never taken from the recipe but from what was stored: rounding moves every spectrum.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
ModelLoader = Callable[[int, int, Generator], Matrix]


def with_values(values: Matrix, rows: int, columns: int, random: Generator) -> Matrix:
    """U diag(values) V' with random orthonormal columns."""
    left = np.linalg.qr(random.standard_normal((rows, len(values))))[0]
    right = np.linalg.qr(random.standard_normal((columns, len(values))))[0]
    return np.asarray((left * values) @ right.T)


def from_values(recipe: Callable[[Matrix], Matrix]) -> ModelLoader:
    """A maker from singular values as a function of their number 0, 1, 2, ..."""

    def make(rows: int, columns: int, random: Generator) -> Matrix:
        numbers = np.arange(min(rows, columns), dtype=np.float64)
        return with_values(recipe(numbers), rows, columns, random)

    return make


def planted(rank: int) -> ModelLoader:
    """A sum of `rank` random outer products: exactly that rank before rounding."""

    def make(rows: int, columns: int, random: Generator) -> Matrix:
        return np.asarray(random.standard_normal((rows, rank)) @ random.standard_normal((rank, columns)))

    return make


def zero(rows: int, columns: int, random: Generator) -> Matrix:
    return np.zeros((rows, columns))


def bulk(rows: int, columns: int, random: Generator) -> Matrix:
    """Independent Gaussian entries: a Marchenko-Pastur bulk and nothing else."""
    return random.standard_normal((rows, columns))


def bulk_and_spikes(rows: int, columns: int, random: Generator) -> Matrix:
    """Eight spikes from just above the bulk's edge to three times it."""
    spikes = np.linspace(3.0, 1.05, min(8, rows, columns)) * (np.sqrt(rows) + np.sqrt(columns))
    return bulk(rows, columns, random) + with_values(spikes, rows, columns, random)


def sparse(rows: int, columns: int, random: Generator) -> Matrix:
    """One entry in twenty, as reinforcement learning leaves them."""
    return np.where(random.random((rows, columns)) < 0.05, random.standard_normal((rows, columns)), 0.0)


def few_rows(rows: int, columns: int, random: Generator) -> Matrix:
    """Every tenth row changed, the others untouched."""
    delta = np.zeros((rows, columns))
    delta[::10] = random.standard_normal(delta[::10].shape)
    return delta


def _clusters(i: Matrix) -> Matrix:
    # Twelve values within 1e-6 of each other, again and again: rank 64 cuts through the middle of one.
    return np.asarray(0.7 ** (i // 12) * (1 + 1e-6 * np.cos(i)))


def _repeated(i: Matrix) -> Matrix:
    return np.where(i < 40, 1.0, np.where(i < 240, 0.5, 0.1))


SPECTRA: dict[str, ModelLoader] = {
    "all_values_equal": from_values(np.ones_like),
    "gaussian_bulk": bulk,
    "bulk_and_spikes": bulk_and_spikes,
    "steep_geometric": from_values(lambda i: 0.5**i),
    "gentle_geometric": from_values(lambda i: 0.98**i),
    "power_law": from_values(lambda i: 1 / (1 + i)),
    "clustered": from_values(_clusters),
    "many_repeated": from_values(_repeated),
    "one_dominant": from_values(lambda i: np.where(i == 0, 1.0, 0.01)),
    "cliff_past_64": from_values(lambda i: np.where(i < 65, 1.0, 1e-3)),
    "sparse": sparse,
    "few_rows": few_rows,
    "rank_1": planted(1),
    "planted_16": planted(16),
    "planted_64": planted(64),
    "all_zero": zero,
}
PLANTED: dict[str, int] = {"rank_1": 1, "planted_16": 16, "planted_64": 64}
"""Spectra of a known finite rank: from there on nothing is lost but rounding."""


def share_lost(delta: Matrix, ranks: list[int]) -> dict[int, float]:
    """rank -> 1 - energy_kept(rank), by a full SVD in float64, the tail summed from its small end."""
    energies = np.linalg.svd(delta, compute_uv=False) ** 2
    tails = np.concatenate([np.cumsum(energies[::-1])[::-1], [0.0]])
    total = tails[0]
    return {rank: float(tails[min(rank, len(energies))] / total) if total > 0 else 0.0 for rank in ranks}
