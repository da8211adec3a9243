"""The Gram matrix of the short side."""

from __future__ import annotations

import torch
from torch import Tensor

from deltarank.spectra.workspace import Workspace

_STRIPES = 16
_NARROW = 32


def accumulation_dtype(side: int, delta: Tensor) -> torch.dtype:
    """What a Gram matrix of this side is summed in: MKL adds the long sums of narrow ones number by number.

    (In float32 the trace of 5 x 20000 was off by 8e-7 of itself, and of 3 x 60000 by 6e-6; of 16 x 8192 by 1e-8.)
    """
    can_double = delta.device.type != "mps"
    return torch.float64 if side <= _NARROW and can_double else delta.dtype


def gram_matrix(delta: Tensor, workspace: Workspace) -> Tensor:
    """D D' or D' D, whichever is smaller; only its lower triangle is valid.

    In stripes that end at the diagonal, which is 17/32 of the work of a product. (Measured on 2048 x 8192, one thread:
    0.75 s for the product, 0.40 in stripes, 0.34 by BLAS's symmetric update, for which torch has no name and which
    scipy calls without letting other threads run.)
    """
    wide = delta if delta.shape[0] <= delta.shape[1] else delta.T
    side = wide.shape[0]
    wide = wide.to(accumulation_dtype(side, delta))
    out = workspace.empty("gram", (side, side), wide.dtype)
    step = -(-side // _STRIPES)
    for first in range(0, side, step):
        last = min(first + step, side)
        torch.mm(wide[first:last], wide[:last].T, out=out[first:last, :last])
    return out
