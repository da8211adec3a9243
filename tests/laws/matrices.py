"""Deltas of known kind for the laws, in float64; the truth is always an SVD of what was stored."""

import math
from collections.abc import Callable, Mapping
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from deltarank.spectra import (
    RoundingNoise,
    Spectrum,
    Sums,
    Workspace,
    choose_solver,
    make_solver,
    measure_spectrum,
    subtract,
)

Matrix = NDArray[np.float64]
MatrixMaker = Callable[[int, int, np.random.Generator], Matrix]

RANKS = (1, 8, 16, 32, 64, 128, 256)


def with_values(values: Matrix, rows: int, columns: int, random: np.random.Generator) -> Matrix:
    """U diag(values) V' with random orthonormal columns."""
    left = np.linalg.qr(random.standard_normal((rows, len(values))))[0]
    right = np.linalg.qr(random.standard_normal((columns, len(values))))[0]
    return np.asarray((left * values) @ right.T)


def spectrum(recipe: Callable[[Matrix], Matrix]) -> MatrixMaker:
    """A maker from singular values as a function of their number 0, 1, 2, ..."""

    def make(rows: int, columns: int, random: np.random.Generator) -> Matrix:
        return with_values(recipe(np.arange(min(rows, columns), dtype=np.float64)), rows, columns, random)

    return make


def planted(rank: int) -> MatrixMaker:
    """A sum of `rank` random outer products."""

    def make(rows: int, columns: int, random: np.random.Generator) -> Matrix:
        return np.asarray(random.standard_normal((rows, rank)) @ random.standard_normal((rank, columns)))

    return make


def gaussian(rows: int, columns: int, random: np.random.Generator) -> Matrix:
    return random.standard_normal((rows, columns))


def few_rows(rows: int, columns: int, random: np.random.Generator) -> Matrix:
    """Every tenth row changed: rows of zeros, on which MKL's eigensolver has given up."""
    delta = np.zeros((rows, columns))
    delta[::10] = random.standard_normal(delta[::10].shape)
    return delta


MAKERS: Mapping[str, MatrixMaker] = {
    "flat": gaussian,
    "all values equal": spectrum(np.ones_like),
    "steep": spectrum(lambda i: 0.5**i),
    "gentle": spectrum(lambda i: 0.98**i),
    "power law": spectrum(lambda i: 1 / (1 + i)),
    "clustered": spectrum(lambda i: np.asarray(0.7 ** (i // 12) * (1 + 1e-6 * np.cos(i)))),
    "one dominant": spectrum(lambda i: np.where(i == 0, 1.0, 0.01)),
    "cliff past 64": spectrum(lambda i: np.where(i < 65, 1.0, 1e-3)),
    "few rows": few_rows,
    "rank 1": planted(1),
    "planted 16": planted(16),
    "planted 64": planted(64),
}
PLANTED = {"rank 1": 1, "planted 16": 16, "planted 64": 64}
SIZES = ((1, 300), (300, 1), (5, 2000), (2000, 5), (96, 96), (300, 700), (700, 300))


def pair(
    kind: str, size: tuple[int, int], dtype: torch.dtype, *, relative_norm: float = 0.03
) -> tuple[torch.Tensor, torch.Tensor]:
    """(base, finetune) as stored: a Gaussian base, and a delta of this kind and relative norm on what was stored."""
    random = np.random.default_rng([*kind.encode(), *size])
    base = torch.from_numpy(random.standard_normal(size)).to(dtype)
    delta = torch.from_numpy(MAKERS[kind](*size, random))
    scale = relative_norm * float(base.double().norm() / delta.norm())
    return base, (base.double() + scale * delta).to(dtype)


def stored_delta(base: torch.Tensor, finetune: torch.Tensor) -> Matrix:
    return (finetune.double() - base.double()).numpy()


@cache
def case(kind: str, size: tuple[int, int], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, dict[int, float]]:
    """A pair and its true shares lost at `RANKS`: made once for all solvers."""
    base, finetune = pair(kind, size, dtype)
    return base, finetune, true_shares_lost(stored_delta(base, finetune), RANKS)


def true_shares_lost(delta: Matrix, ranks: tuple[int, ...]) -> dict[int, float]:
    """rank -> ||D - D_r||^2 / ||D||^2 by numpy's SVD in float64, the tail summed from its small end."""
    energies = np.linalg.svd(delta, compute_uv=False) ** 2
    tails = np.concatenate([np.cumsum(energies[::-1])[::-1], [0.0]])
    return {rank: float(tails[min(rank, len(energies))] / tails[0]) for rank in ranks}


def measured(
    base: torch.Tensor,
    finetune: torch.Tensor,
    *,
    solver: str,
    ranks: tuple[int, ...] = RANKS,
    tolerance: float = 1e-4,
    dtype: torch.dtype = torch.float32,
) -> tuple[Spectrum, Sums]:
    """Measures one pair as `compare` does, without files."""
    workspace = Workspace()
    rows, columns = base.shape
    delta = torch.empty(rows, columns, dtype=dtype)
    noise = RoundingNoise()
    sums = subtract(base, finetune, out=delta, workspace=workspace, noise=noise)
    name = choose_solver(solver, rows, columns, ranks, torch.device("cpu"), tolerance=tolerance)
    found = measure_spectrum(
        delta,
        sums.energy,
        ranks=ranks,
        solver=make_solver(name, workspace, tolerance=tolerance, seed=0),
        edge=noise.edge(),
        workspace=workspace,
    )
    return found, sums


def cosine_distance(share_lost: float) -> float:
    """1 - sqrt(1 - x), without cancellation."""
    return share_lost / (1 + math.sqrt(max(1 - share_lost, 0.0)))
