"""The `compare` job: what a LoRA of each rank would lose of a finetune, in the weights."""

from deltarank.jobs.compare.api import compare, open_results, plan
from deltarank.jobs.compare.base_check import ALIKE
from deltarank.jobs.compare.job import CompareJob, CompareRun
from deltarank.jobs.compare.measure import MatrixMeasurer, group_small_matrices
from deltarank.jobs.compare.options import CompareKeywords, CompareOptions
from deltarank.jobs.compare.tensor_sums import not_summed, summed
from deltarank.jobs.compare.unlike_matrices import RELATED, UNRELATED, UnlikeMatrices
from deltarank.jobs.compare.verdict import judge
from deltarank.runtime import Plan

__all__ = [
    "ALIKE",
    "RELATED",
    "UNRELATED",
    "CompareJob",
    "CompareKeywords",
    "CompareOptions",
    "CompareRun",
    "MatrixMeasurer",
    "Plan",
    "UnlikeMatrices",
    "compare",
    "group_small_matrices",
    "judge",
    "not_summed",
    "open_results",
    "plan",
    "summed",
]
