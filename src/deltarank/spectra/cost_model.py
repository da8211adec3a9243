"""Which solver is cheaper for a matrix: a cost model with constants measured on two cores of one machine."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from deltarank.spectra.low_precision import has_fast_bfloat16, has_fast_int8


@dataclass(frozen=True)
class DeviceRates:
    """Operations per second of a device.

    symmetric     products of a matrix with its own transpose
    eigenvalues   symmetric eigenproblems of a large matrix
    skinny        products of a large matrix and a thin block
    small         orthogonalisation and small eigenproblems
    int8_gram     symmetric products in int8; 0: not available
    int8_skinny   products of the resulting Gram matrix, in bfloat16, and a thin block; 0: not available
    """

    symmetric: float
    eigenvalues: float
    skinny: float
    small: float
    int8_gram: float = 0.0
    int8_skinny: float = 0.0


# Two cores of an AMD EPYC (Zen 4), float32, torch 2.13 with MKL, 2026-11: see benchmarks/history. Only their ratios
# decide, and they are constants so that the same settings choose the same solver on every machine of a kind.
_CPU = DeviceRates(symmetric=360e9, eigenvalues=60e9, skinny=100e9, small=60e9)
_CPU_BFLOAT16 = replace(_CPU, skinny=280e9)
_CPU_INT8 = replace(_CPU_BFLOAT16, int8_gram=1300e9, int8_skinny=400e9)
# Not measured: a large GPU according to its data sheet; eigenvalues according to published reports.
_CUDA_FLOAT32 = DeviceRates(symmetric=40e12, eigenvalues=0.5e12, skinny=40e12, small=1e12)
_CUDA = replace(_CUDA_FLOAT32, skinny=100e12)

LOW_PRECISION_TOLERANCE = 5e-5
"""The tightest tolerance for which directions found in low precision are good enough without refinement."""

MAX_KRYLOV_TIME = 0.8
"""The share of the exact solver's time that Krylov iteration may take: exact gives the whole spectrum."""

GRAM_SPACE_RATIO = 0.85
"""How much smaller a Krylov space is with D D' formed, because its blocks are smaller then."""


def device_rates(device: torch.device, tolerance: float = LOW_PRECISION_TOLERANCE) -> DeviceRates:
    """The rates of a device, with low precision where the tolerance of the Krylov iteration allows it."""
    if device.type == "cuda":
        return _CUDA if tolerance >= LOW_PRECISION_TOLERANCE else _CUDA_FLOAT32
    if tolerance >= LOW_PRECISION_TOLERANCE and has_fast_bfloat16(device):
        return _CPU_INT8 if has_fast_int8(device) else _CPU_BFLOAT16
    return _CPU


def exact_seconds(rows: int, columns: int, rates: DeviceRates) -> float:
    """The time of a Gram matrix and its eigenvalues."""
    side, length = sorted((rows, columns))
    return 2 * side**2 * length / rates.symmetric + 4 / 3 * side**3 / rates.eigenvalues


def gram_and_vectors_seconds(rows: int, columns: int, rates: DeviceRates) -> float:
    """The time of a Gram matrix and all of its eigenvectors."""
    side, length = sorted((rows, columns))
    return 2 * side**2 * length / rates.symmetric + 4 * side**3 / rates.eigenvalues


def krylov_seconds(rows: int, columns: int, rank: int, rates: DeviceRates) -> float:
    """The time of products with D and D' (or D D'), orthogonalisation, small eigenproblems and the last projection."""
    side, length = sorted((rows, columns))
    rank = min(rank, side)
    size = _krylov_space_size(side, rank)
    small = (4 * side * size**2 + 10 * size**3) / rates.small
    products = min(_products_seconds(side, length, size, rates), _gram_seconds(side, length, size, rates))
    return products + small + 2 * side * length * rank / rates.symmetric


def krylov_memory(rows: int, columns: int, rank: int, rates: DeviceRates, itemsize: int) -> float:
    """Bytes of the delta, its copy in low precision or that copy's Gram matrix, and the basis."""
    side, entries = min(rows, columns), rows * columns
    basis = side * (260.0 + 5.0 * rank)
    if itemsize == 4 and is_gram_cheaper(rows, columns, rank, rates):
        return 5.0 * entries + 3.0 * side**2 + itemsize * basis
    return itemsize * (1.5 * entries + basis)


def is_gram_cheaper(rows: int, columns: int, rank: int, rates: DeviceRates) -> bool:
    """Whether Krylov iteration should first form D D' of D rounded to int8."""
    side, length = sorted((rows, columns))
    size = _krylov_space_size(side, min(rank, side))
    return _gram_seconds(side, length, size, rates) < _products_seconds(side, length, size, rates)


def _krylov_space_size(side: int, rank: int) -> int:
    """The size of a Krylov space at which a flat spectrum has converged, measured at ranks 8 to 256."""
    return min(260 + 4 * rank, side)


def _products_seconds(side: int, length: int, size: int, rates: DeviceRates) -> float:
    return 4 * side * length * size / rates.skinny


def _gram_seconds(side: int, length: int, size: int, rates: DeviceRates) -> float:
    if not rates.int8_gram:
        return math.inf
    return 2 * side**2 * length / rates.int8_gram + 2 * side**2 * GRAM_SPACE_RATIO * size / rates.int8_skinny


def cheaper_solver(rows: int, columns: int, rank: int, device: torch.device, tolerance: float) -> str:
    """ "exact" or "krylov"."""
    rates = device_rates(device, tolerance)
    seconds = krylov_seconds(rows, columns, rank, rates)
    return "krylov" if seconds < MAX_KRYLOV_TIME * exact_seconds(rows, columns, rates) else "exact"
