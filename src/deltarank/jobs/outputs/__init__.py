"""The `outputs` job: predictions and texts of the finetune, compared with those of models served in its place."""

from deltarank.jobs.outputs.api import outputs, plan_outputs
from deltarank.jobs.outputs.job import OutputsJob
from deltarank.jobs.outputs.loaded_model import LoadedModel
from deltarank.jobs.outputs.low_rank import lora_matrices
from deltarank.jobs.outputs.options import OutputsKeywords, OutputsOptions
from deltarank.jobs.outputs.plan import OutputsPlan
from deltarank.jobs.outputs.served import ServedModels
from deltarank.results import Outputs

__all__ = [
    "LoadedModel",
    "Outputs",
    "OutputsJob",
    "OutputsKeywords",
    "OutputsOptions",
    "OutputsPlan",
    "ServedModels",
    "lora_matrices",
    "outputs",
    "plan_outputs",
]
