"""The `verify` job: what an adapter from disk does to the base."""

from deltarank.jobs.verify.job import VerifyJob
from deltarank.jobs.verify.run import verify

__all__ = ["VerifyJob", "verify"]
