"""Which solver is cheaper for a matrix: a cost model with constants measured on two cores of one machine."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from deltarank.spectra.low_precision import has_fast_bfloat16, has_fast_int8


@dataclass(frozen=True)
class DeviceRates:
    """Operations a second; 0 where a device has no such thing."""

    symmetric: float
    eigenvalues: float
    skinny: float
    small: float
    rounded: float = 0.0
    square: float = 0.0


# Two cores of an AMD EPYC (Zen 4), float32, torch 2.13 with MKL, 2026-11: see benchmarks/history. Only their ratios
# decide, and they are constants so that the same settings choose the same solver on every machine of a kind.
_CPU = DeviceRates(symmetric=360e9, eigenvalues=60e9, skinny=100e9, small=60e9)
_CPU_BFLOAT16 = replace(_CPU, skinny=280e9)
_CPU_INT8 = replace(_CPU_BFLOAT16, rounded=1300e9, square=400e9)
# Not measured: a large GPU by its data sheet, and symmetric eigenvalues by what others report.
_CUDA_FLOAT32 = DeviceRates(symmetric=40e12, eigenvalues=0.5e12, skinny=40e12, small=1e12)
_CUDA = replace(_CUDA_FLOAT32, skinny=100e12)

COARSE = 5e-5
"""Directions found in few bits are good for a tolerance down to this, as they are."""

SURELY = 0.8
"""Krylov iteration must promise this share of exact's time or less: exact gives the whole spectrum."""

SMALLER = 0.85
"""Of the size of a Krylov space, where blocks are small because D D' was formed."""


def device_rates(device: torch.device, tolerance: float = COARSE) -> DeviceRates:
    """In few bits too, where Krylov iteration may be in few bits."""
    if device.type == "cuda":
        return _CUDA if tolerance >= COARSE else _CUDA_FLOAT32
    if tolerance >= COARSE and has_fast_bfloat16(device):
        return _CPU_INT8 if has_fast_int8(device) else _CPU_BFLOAT16
    return _CPU


def exact_seconds(rows: int, columns: int, rates: DeviceRates) -> float:
    """Gram matrix and its eigenvalues."""
    side, length = sorted((rows, columns))
    return 2 * side**2 * length / rates.symmetric + 4 / 3 * side**3 / rates.eigenvalues


def gram_and_vectors_seconds(rows: int, columns: int, rates: DeviceRates) -> float:
    """Gram matrix and all of its eigenvectors."""
    side, length = sorted((rows, columns))
    return 2 * side**2 * length / rates.symmetric + 4 * side**3 / rates.eigenvalues


def krylov_seconds(rows: int, columns: int, rank: int, rates: DeviceRates) -> float:
    """Products with D and D', or with their product, orthogonalisation, small eigenproblems, the last projection."""
    side, length = sorted((rows, columns))
    rank = min(rank, side)
    size = _space(side, rank)
    small = (4 * side * size**2 + 10 * size**3) / rates.small
    products = min(_by_products(side, length, size, rates), _by_square(side, length, size, rates))
    return products + small + 2 * side * length * rank / rates.symmetric


def krylov_memory(rows: int, columns: int, rank: int, rates: DeviceRates, itemsize: int) -> float:
    """Bytes: the delta, a copy of it in few bits or that copy's Gram matrix, the basis."""
    side, entries = min(rows, columns), rows * columns
    basis = side * (260.0 + 5.0 * rank)
    if itemsize == 4 and is_square_cheaper(rows, columns, rank, rates):
        return 5.0 * entries + 3.0 * side**2 + itemsize * basis
    return itemsize * (1.5 * entries + basis)


def is_square_cheaper(rows: int, columns: int, rank: int, rates: DeviceRates) -> bool:
    """Whether Krylov iteration should form D D' first, of D rounded to 8 bits."""
    side, length = sorted((rows, columns))
    size = _space(side, min(rank, side))
    return _by_square(side, length, size, rates) < _by_products(side, length, size, rates)


def _space(side: int, rank: int) -> int:
    """The size of a Krylov space when a flat spectrum has settled, measured at ranks 8 to 256."""
    return min(260 + 4 * rank, side)


def _by_products(side: int, length: int, size: int, rates: DeviceRates) -> float:
    return 4 * side * length * size / rates.skinny


def _by_square(side: int, length: int, size: int, rates: DeviceRates) -> float:
    if not rates.rounded:
        return math.inf
    return 2 * side**2 * length / rates.rounded + 2 * side**2 * SMALLER * size / rates.square


def cheaper_solver(rows: int, columns: int, rank: int, device: torch.device, tolerance: float) -> str:
    """ "exact" or "krylov"."""
    known = device_rates(device, tolerance)
    promised = krylov_seconds(rows, columns, rank, known)
    return "krylov" if promised < SURELY * exact_seconds(rows, columns, known) else "exact"
