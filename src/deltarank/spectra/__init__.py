"""One matrix in, numbers out: deltas, their singular values, and what a truncation loses. No names, no files."""

from __future__ import annotations

from deltarank.spectra.batched import batch_size, measure_batch
from deltarank.spectra.choose import SOLVERS, choose_solver, make_solver
from deltarank.spectra.cost_model import device_rates, exact_seconds, krylov_memory, krylov_seconds
from deltarank.spectra.delta import Sums, energy_of, subtract, subtract_batch
from deltarank.spectra.factors import FactorisationCost, Factors, factorisation_cost, factorise, residual_energy
from deltarank.spectra.low_rank_product import product_spectrum, product_sums
from deltarank.spectra.measure import measure_spectrum, reference_singular_values
from deltarank.spectra.noise import RoundingNoise
from deltarank.spectra.sketch import Sketcher, sketch_delta, sketch_length
from deltarank.spectra.spectrum import Level, Spectrum
from deltarank.spectra.weighted import InputGram, weighted_errors
from deltarank.spectra.workspace import Workspace

__all__ = [
    "SOLVERS",
    "FactorisationCost",
    "Factors",
    "InputGram",
    "Level",
    "RoundingNoise",
    "Sketcher",
    "Spectrum",
    "Sums",
    "Workspace",
    "batch_size",
    "choose_solver",
    "device_rates",
    "energy_of",
    "exact_seconds",
    "factorisation_cost",
    "factorise",
    "krylov_memory",
    "krylov_seconds",
    "make_solver",
    "measure_batch",
    "measure_spectrum",
    "product_spectrum",
    "product_sums",
    "reference_singular_values",
    "residual_energy",
    "sketch_delta",
    "sketch_length",
    "subtract",
    "subtract_batch",
    "weighted_errors",
]
