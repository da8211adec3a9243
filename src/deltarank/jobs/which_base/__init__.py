"""The `which-base` job: which of several candidates a finetune came from."""

from deltarank.jobs.which_base.run import which_base

__all__ = ["which_base"]
