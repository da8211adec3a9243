"""The `which_base` job: which of several candidates a finetune came from."""

from deltarank.jobs.which_base.run import BaseChoice, BaseKind, CandidateBase, table, which_base

__all__ = [
    "BaseChoice",
    "BaseKind",
    "CandidateBase",
    "table",
    "which_base",
]
