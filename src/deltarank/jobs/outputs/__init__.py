"""The `outputs` job: predictions and texts of the finetune beside those of what is served in its place."""

from deltarank.jobs.outputs.api import outputs, plan_outputs
from deltarank.jobs.outputs.plan import OutputsPlan
from deltarank.results import Outputs

__all__ = [
    "Outputs",
    "OutputsPlan",
    "outputs",
    "plan_outputs",
]
