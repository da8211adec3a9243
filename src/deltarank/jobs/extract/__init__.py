"""The `extract` job: the best LoRA of a rank that a server loads."""

from deltarank.jobs.extract.api import extract, plan_extraction
from deltarank.jobs.extract.plan import ExtractionPlan
from deltarank.jobs.extract.result import ExtractedAdapter

__all__ = [
    "ExtractedAdapter",
    "ExtractionPlan",
    "extract",
    "plan_extraction",
]
