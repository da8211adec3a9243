"""Solvers by name."""

from __future__ import annotations

import torch

from deltarank.spectra.cost_model import cheaper_solver
from deltarank.spectra.exact import Exact
from deltarank.spectra.krylov import Krylov, fills_short_side
from deltarank.spectra.solver import Solver
from deltarank.spectra.workspace import Workspace

SOLVERS = ("auto", "exact", "krylov")


def choose_solver(
    asked: str, rows: int, columns: int, ranks: tuple[int, ...], device: torch.device, *, tolerance: float
) -> str:
    """The solver that `asked` comes to for a matrix of this shape.

    A Krylov space that would fill most of the short side has nothing to iterate on: that is `exact`, whoever asked.
    """
    if asked == "auto":
        return cheaper_solver(rows, columns, max(ranks), device, tolerance)
    return "exact" if asked == "krylov" and fills_short_side(min(rows, columns), max(ranks)) else asked


def make_solver(name: str, workspace: Workspace, *, tolerance: float, seed: int) -> Solver:
    """`exact`, or `krylov` to a tolerance in cosine distance, started from random directions of this seed."""
    if name == "exact":
        return Exact(workspace)
    return Krylov(workspace, tolerance=tolerance, seed=seed)
