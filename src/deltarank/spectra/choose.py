"""Which solver measures a matrix, and the solver of a given name."""

from __future__ import annotations

import torch

from deltarank.spectra.cost_model import cheaper_solver
from deltarank.spectra.exact import Exact
from deltarank.spectra.krylov import Krylov, fills_short_side
from deltarank.spectra.solver import Solver
from deltarank.spectra.workspace import Workspace

SOLVERS = ("auto", "exact", "krylov")


def choose_solver(
    requested: str, rows: int, columns: int, ranks: tuple[int, ...], device: torch.device, *, tolerance: float
) -> str:
    """The solver for a matrix of this shape: "exact" or "krylov".

    A Krylov space that would fill most of the short side has nothing to iterate on, so even "krylov" becomes "exact".

    Args:
        requested: one of `SOLVERS`.
    """
    if requested == "auto":
        return cheaper_solver(rows, columns, max(ranks), device, tolerance)
    return "exact" if requested == "krylov" and fills_short_side(min(rows, columns), max(ranks)) else requested


def make_solver(name: str, workspace: Workspace, *, tolerance: float, seed: int) -> Solver:
    """The solver "exact"; or "krylov", with a tolerance in cosine distance and a seed for its random start."""
    if name == "exact":
        return Exact(workspace)
    return Krylov(workspace, tolerance=tolerance, seed=seed)
