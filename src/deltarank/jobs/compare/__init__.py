"""The `compare` job: what a LoRA of each rank would lose of a finetune, in the weights."""

from deltarank.jobs.compare.measure import MatrixMeasurer
from deltarank.jobs.compare.run import compare, open_results, plan
from deltarank.jobs.compare.verdict import UNRELATED
from deltarank.runtime import Plan

__all__ = [
    "UNRELATED",
    "MatrixMeasurer",
    "Plan",
    "compare",
    "open_results",
    "plan",
]
