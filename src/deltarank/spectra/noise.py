"""The noise edge: the largest singular value that storage rounding alone would show."""

from __future__ import annotations

import math


def noise_edge(rounding_energy: float, rows: int, columns: int) -> float:
    """The largest singular value that rounding alone would show, in the unit of the weights.

    Rounding errors are taken as independent with variance v = rounding_energy / (rows * columns). Their spectrum ends
    at sqrt(v) (sqrt(rows) + sqrt(columns)) (Marchenko and Pastur 1967). The largest value fluctuates about that end by
    a share of the order of side^(-2/3) (Tracy and Widom 1994; Johnstone 2001), so the edge is two such shares above.
    """
    sigma = math.sqrt(rounding_energy / (rows * columns))
    margin: float = 1 + 2 * min(rows, columns) ** (-2 / 3)
    return sigma * (math.sqrt(rows) + math.sqrt(columns)) * margin
