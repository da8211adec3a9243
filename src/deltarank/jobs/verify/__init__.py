"""The `verify` job: what an adapter from disk does to the base."""

from deltarank.jobs.verify.result import FitKind, How, Tally, TensorFit, Unused, Verification
from deltarank.jobs.verify.run import verify

__all__ = [
    "FitKind",
    "How",
    "Tally",
    "TensorFit",
    "Unused",
    "Verification",
    "verify",
]
