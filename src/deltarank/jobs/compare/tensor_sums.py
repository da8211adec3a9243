"""The size of the change of a tensor that is not measured, as it is stored in the results."""

from __future__ import annotations

from deltarank.checkpoints import SummedTensor
from deltarank.results import Outcome, Skipped
from deltarank.runtime import TENSOR_FAILURES, DeltaReader, failure_outcome
from deltarank.spectra import Sums


def sum_tensor(tensor: SummedTensor, reader: DeltaReader) -> Skipped:
    """A tensor that cannot be read gives a result with that outcome."""
    try:
        return summed(tensor, reader.sums(tensor))
    except TENSOR_FAILURES as error:
        return not_summed(tensor, error)


def summed(tensor: SummedTensor, sums: Sums) -> Skipped:
    if not sums.is_finite:
        return Skipped(tensor.name, Outcome.NOT_FINITE, "a checkpoint contains NaN or Inf here", tensor.shape)
    return Skipped(tensor.name, tensor.outcome, tensor.reason, tensor.shape, sums.energy)


def not_summed(tensor: SummedTensor, error: Exception) -> Skipped:
    """`error` is one of TENSOR_FAILURES."""
    return Skipped(tensor.name, *failure_outcome(error), tensor.shape)
