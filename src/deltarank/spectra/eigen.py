"""Eigenvalues and eigenvectors of symmetric matrices, of which the lower triangle is read.

This module works around two problems of plain calls:

- Up to a side of about 500 a second thread gains nothing (measured: 480 x 480 in 13 ms on one, 12 on two), and its
  barriers are slow when another program uses part of a core: 192 x 192 then takes 1,000 ms on two threads, 1.6 on one.
- MKL's solver fails, or returns NaN, on some matrices with rows of zeros, as from a finetune that left rows unchanged
  (seen: 96 x 96 of which 86 rows are zero). The LAPACK in scipy solves them. So results are checked: the eigenvalues
  must add up to the trace.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch
from torch import Tensor

_MAX_SINGLE_THREAD_SIDE = 600
_ORTHONORMALITY_TOLERANCE = 1e-3


@contextmanager
def _suitable_threads(matrix: Tensor) -> Iterator[None]:
    threads = torch.get_num_threads()
    if matrix.device.type != "cpu" or matrix.shape[0] > _MAX_SINGLE_THREAD_SIDE or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def eigenvalues(lower: Tensor) -> Tensor:
    """All eigenvalues, ascending."""
    device, lower = lower.device, _on_supported_device(lower)
    with suppress(RuntimeError), _suitable_threads(lower):
        values: Tensor = torch.linalg.eigvalsh(lower, UPLO="L")
        if _sum_matches_trace(values, lower):
            return values.to(device)
    from scipy.linalg import eigh

    numbers = eigh(lower.cpu().numpy(), lower=True, eigvals_only=True, driver="evd", check_finite=False)
    return torch.from_numpy(numbers).to(device)


def batched_eigenvalues(matrices: Tensor) -> list[Tensor | None] | None:
    """All eigenvalues of each of (n, side, side), ascending, on the CPU.

    None for a matrix whose eigenvalues are wrong; None for all if the solver fails.
    """
    lower = _on_supported_device(matrices)
    with suppress(RuntimeError), _suitable_threads(lower[0]):
        batch = torch.linalg.eigvalsh(lower, UPLO="L")
        traces = lower.diagonal(dim1=1, dim2=2).sum(1)
        is_right = (batch.sum(1) - traces).abs() <= 1e-3 * traces.abs()  # NaN fails
        return [values if right else None for values, right in zip(batch.cpu(), is_right.tolist(), strict=True)]
    return None


def eigenvectors(lower: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, ascending, and their eigenvectors as columns."""
    device, lower = lower.device, _on_supported_device(lower)
    with suppress(RuntimeError), _suitable_threads(lower):
        result = torch.linalg.eigh(lower, UPLO="L")
        if _sum_matches_trace(result.eigenvalues, lower):
            return result.eigenvalues.to(device), result.eigenvectors.to(device)
    from scipy.linalg import eigh

    numbers, columns = eigh(lower.cpu().numpy(), lower=True, driver="evd", check_finite=False)
    return torch.from_numpy(numbers).to(device), torch.from_numpy(columns).to(device)


def leading_eigenvectors(lower: Tensor, count: int) -> Tensor:
    """(side, count): orthonormal eigenvectors of the `count` largest eigenvalues, in unspecified order."""
    side = lower.shape[0]
    if lower.device.type != "cuda":
        from scipy.linalg import LinAlgError, eigh

        # Computing only these vectors costs hardly more than the values alone; torch would compute all vectors. On many
        # equal values this solver has failed ("Internal Error"), or found fewer vectors than requested.
        wanted = [side - count, side - 1]
        with suppress(LinAlgError):
            _, columns = eigh(lower.cpu().numpy(), lower=True, subset_by_index=wanted, check_finite=False)
            leading = torch.from_numpy(columns)
            if leading.shape[1] == count and _are_orthonormal(leading):
                return leading.to(lower.device)
    return eigenvectors(lower)[1][:, side - count :]


def _sum_matches_trace(values: Tensor, lower: Tensor) -> bool:
    trace = float(lower.diagonal().sum())
    return abs(float(values.sum()) - trace) <= 1e-3 * abs(trace)  # NaN fails


def _are_orthonormal(columns: Tensor) -> bool:
    off = columns.T @ columns - torch.eye(columns.shape[1], dtype=columns.dtype)
    return float(off.abs().max()) < _ORTHONORMALITY_TOLERANCE  # NaN fails


def _on_supported_device(lower: Tensor) -> Tensor:
    # Apple's GPUs have no symmetric eigensolver.
    return lower.cpu() if lower.device.type == "mps" else lower
