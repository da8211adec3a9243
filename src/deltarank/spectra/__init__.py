"""One matrix in, numbers out: deltas, their singular values, and what a truncation loses. No names, no files."""

from __future__ import annotations

from deltarank.spectra.batched import measure_stack, stack_size
from deltarank.spectra.choose import SOLVERS, chosen, make_solver
from deltarank.spectra.cost_model import exact_seconds, krylov_memory, krylov_seconds, rates
from deltarank.spectra.delta import Sums, energy_of, subtract, subtract_stack
from deltarank.spectra.factors import Cost, Factors, factorise, factors_cost, residual_energy
from deltarank.spectra.low_rank_product import product_spectrum, product_sums
from deltarank.spectra.measure import audited, measure_spectrum
from deltarank.spectra.noise import noise_edge
from deltarank.spectra.spectrum import Level, Spectrum
from deltarank.spectra.workspace import Workspace

__all__ = [
    "SOLVERS",
    "Cost",
    "Factors",
    "Level",
    "Spectrum",
    "Sums",
    "Workspace",
    "audited",
    "chosen",
    "energy_of",
    "exact_seconds",
    "factorise",
    "factors_cost",
    "krylov_memory",
    "krylov_seconds",
    "make_solver",
    "measure_spectrum",
    "measure_stack",
    "noise_edge",
    "product_spectrum",
    "product_sums",
    "rates",
    "residual_energy",
    "stack_size",
    "subtract",
    "subtract_stack",
]
