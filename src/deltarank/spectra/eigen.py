"""Eigenvalues of symmetric matrices, of which the lower triangle is read.

Two things that a plain call does not give:

- Up to a side of about 500 a second thread gains nothing (measured: 480 x 480 in 13 ms on one, 12 on two), and its
  barriers cost dearly when another program takes part of a core: 192 x 192 then takes 1,000 ms on two threads, 1.6 on
  one.
- MKL's solver gives up, or answers NaN, on some matrices with rows of zeros, which a finetune that left rows alone has
  (seen: 96 x 96 of which 86 rows are zero). LAPACK as scipy brings it solves them. So answers are checked: the
  eigenvalues must add up to the trace.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch
from torch import Tensor

_SMALL = 600
_ORTHONORMAL = 1e-3


@contextmanager
def _threads_for(matrix: Tensor) -> Iterator[None]:
    threads = torch.get_num_threads()
    if matrix.device.type != "cpu" or matrix.shape[0] > _SMALL or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def eigenvalues(lower: Tensor) -> Tensor:
    """All eigenvalues, ascending."""
    home, lower = lower.device, _solvable(lower)
    with suppress(RuntimeError), _threads_for(lower):
        found: Tensor = torch.linalg.eigvalsh(lower, UPLO="L")
        if _adds_up(found, lower):
            return found.to(home)
    from scipy.linalg import eigh

    numbers = eigh(lower.cpu().numpy(), lower=True, eigvals_only=True, driver="evd", check_finite=False)
    return torch.from_numpy(numbers).to(home)


def batched_eigenvalues(matrices: Tensor) -> list[Tensor | None] | None:
    """All eigenvalues of each of (n, side, side), ascending, on the CPU; None for a wrong answer, or for no answer."""
    lower = _solvable(matrices)
    with suppress(RuntimeError), _threads_for(lower[0]):
        found = torch.linalg.eigvalsh(lower, UPLO="L")
        traces = lower.diagonal(dim1=1, dim2=2).sum(1)
        right = (found.sum(1) - traces).abs() <= 1e-3 * traces.abs()  # NaN fails
        return [values if good else None for values, good in zip(found.cpu(), right.tolist(), strict=True)]
    return None


def eigenvectors(lower: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, ascending, and their eigenvectors as columns."""
    home, lower = lower.device, _solvable(lower)
    with suppress(RuntimeError), _threads_for(lower):
        found = torch.linalg.eigh(lower, UPLO="L")
        if _adds_up(found.eigenvalues, lower):
            return found.eigenvalues.to(home), found.eigenvectors.to(home)
    from scipy.linalg import eigh

    numbers, columns = eigh(lower.cpu().numpy(), lower=True, driver="evd", check_finite=False)
    return torch.from_numpy(numbers).to(home), torch.from_numpy(columns).to(home)


def leading_eigenvectors(lower: Tensor, count: int) -> Tensor:
    """(side, count): orthonormal eigenvectors of the `count` largest eigenvalues, in no stated order."""
    side = lower.shape[0]
    if lower.device.type != "cuda":
        from scipy.linalg import LinAlgError, eigh

        # Only these vectors: costs hardly more than the values alone, where torch would compute all of them. Many equal
        # values have made this solver give up ("Internal Error"), or find fewer than were asked for.
        wanted = [side - count, side - 1]
        with suppress(LinAlgError):
            _, columns = eigh(lower.cpu().numpy(), lower=True, subset_by_index=wanted, check_finite=False)
            found = torch.from_numpy(columns)
            if found.shape[1] == count and _are_orthonormal(found):
                return found.to(lower.device)
    return eigenvectors(lower)[1][:, side - count :]


def _adds_up(found: Tensor, lower: Tensor) -> bool:
    trace = float(lower.diagonal().sum())
    return abs(float(found.sum()) - trace) <= 1e-3 * abs(trace)  # NaN fails


def _are_orthonormal(columns: Tensor) -> bool:
    off = columns.T @ columns - torch.eye(columns.shape[1], dtype=columns.dtype)
    return float(off.abs().max()) < _ORTHONORMAL  # NaN fails


def _solvable(lower: Tensor) -> Tensor:
    # Apple's GPUs have no symmetric eigensolver.
    return lower.cpu() if lower.device.type == "mps" else lower
