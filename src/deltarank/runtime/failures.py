"""Failures of a single tensor: each becomes a row of the results, so that one bad tensor never ends a long run."""

from __future__ import annotations

from deltarank.errors import CheckpointError
from deltarank.results import Outcome

TENSOR_FAILURES = (CheckpointError, MemoryError, RuntimeError, ArithmeticError, ValueError)
"""What reading or computing one tensor may raise: a file that cannot be read, no memory, torch's or LAPACK's errors."""

RETRIED_OUTCOMES = (Outcome.FAILED, Outcome.UNREADABLE)
"""Not kept for a resumed run: what failed for want of memory or of a disk may succeed next time."""

_LONGEST_REASON = 300


def failure_outcome(error: Exception) -> tuple[Outcome, str]:
    """The outcome of a tensor that raised one of TENSOR_FAILURES, and the reason that the user reads."""
    if isinstance(error, CheckpointError):
        return Outcome.UNREADABLE, error.message
    first_line = str(error).splitlines()[0] if str(error) else ""
    return Outcome.FAILED, f"{type(error).__name__}: {first_line}"[:_LONGEST_REASON]
