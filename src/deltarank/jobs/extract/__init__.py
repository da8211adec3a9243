"""The `extract` job: the best LoRA of a rank that a server can load."""

from deltarank.jobs.extract.api import extract, extract_with_picture, plan_extraction
from deltarank.jobs.extract.card_update import update_card
from deltarank.jobs.extract.factorise import FactoredMatrix, MatrixFactoriser
from deltarank.jobs.extract.job import ExtractJob
from deltarank.jobs.extract.model_card import render_model_card
from deltarank.jobs.extract.options import ExtractKeywords, ExtractOptions
from deltarank.jobs.extract.output_folder import check_output, folder_beside, is_made_from
from deltarank.jobs.extract.plan import ExtractionPlan
from deltarank.jobs.extract.result import AdapterMatrix, ExtractedAdapter, SummedEnergy
from deltarank.jobs.extract.staging import StagingFolder

__all__ = [
    "AdapterMatrix",
    "ExtractJob",
    "ExtractKeywords",
    "ExtractOptions",
    "ExtractedAdapter",
    "ExtractionPlan",
    "FactoredMatrix",
    "MatrixFactoriser",
    "StagingFolder",
    "SummedEnergy",
    "check_output",
    "extract",
    "extract_with_picture",
    "folder_beside",
    "is_made_from",
    "plan_extraction",
    "render_model_card",
    "update_card",
]
