"""The `which-base` job: which of several candidates a finetune came from."""

from deltarank.jobs.which_base.result import BaseChoice, BaseKind, CandidateBase
from deltarank.jobs.which_base.run import which_base
from deltarank.jobs.which_base.verdict import distance

__all__ = ["BaseChoice", "BaseKind", "CandidateBase", "distance", "which_base"]
