"""Which solver is cheaper for a matrix: a cost model with constants measured on two cores of one machine."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from deltarank.spectra._krylov import has_fast_bfloat16


@dataclass(frozen=True)
class Rates:
    """Floating point operations a second."""

    symmetric: float
    eigenvalues: float
    skinny: float
    small: float


# Two cores of an AMD EPYC (Zen 4), float32, torch 2.13 with MKL, 2026-11: see docs/log.md. Only their ratios decide,
# and they are constants so that the same settings choose the same solver on every machine of a kind.
_CPU = Rates(symmetric=360e9, eigenvalues=60e9, skinny=100e9, small=60e9)
_CPU_BFLOAT16 = Rates(symmetric=360e9, eigenvalues=60e9, skinny=230e9, small=60e9)
# Not measured: a large GPU by its data sheet, and symmetric eigenvalues by what others report.
_CUDA = Rates(symmetric=40e12, eigenvalues=0.5e12, skinny=100e12, small=1e12)

SURELY = 0.8
"""Krylov iteration must promise this share of exact's time or less: exact gives the whole spectrum."""


def rates(device: torch.device) -> Rates:
    if device.type == "cuda":
        return _CUDA
    return _CPU_BFLOAT16 if has_fast_bfloat16(device) else _CPU


def exact_seconds(rows: int, columns: int, rates: Rates) -> float:
    """Gram matrix and its eigenvalues."""
    side, length = sorted((rows, columns))
    return 2 * side**2 * length / rates.symmetric + 4 / 3 * side**3 / rates.eigenvalues


def gram_and_vectors_seconds(rows: int, columns: int, rates: Rates) -> float:
    """Gram matrix and all of its eigenvectors."""
    side, length = sorted((rows, columns))
    return 2 * side**2 * length / rates.symmetric + 4 * side**3 / rates.eigenvalues


def krylov_seconds(rows: int, columns: int, rank: int, rates: Rates) -> float:
    """Products with D and D', orthogonalisation, the small eigenproblem, the last projection."""
    side, length = sorted((rows, columns))
    rank = min(rank, side)
    size = min(260 + 4 * rank, side)  # of the space when a flat spectrum has settled, measured at ranks 8 to 256
    products = 4 * side * length * size / rates.skinny
    small = (4 * side * size**2 + 10 * size**3) / rates.small
    return products + small + 2 * side * length * rank / rates.symmetric


def cheaper(rows: int, columns: int, rank: int, device: torch.device) -> str:
    """ "exact" or "krylov"."""
    known = rates(device)
    promised = krylov_seconds(rows, columns, rank, known)
    return "krylov" if promised < SURELY * exact_seconds(rows, columns, known) else "exact"
