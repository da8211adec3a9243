"""The `fleet` job: many finetunes of one base, each as `compare` measures it, while the base is read once."""

from deltarank.jobs.fleet.api import fleet, plan_fleet
from deltarank.jobs.fleet.kinship import find_kinship
from deltarank.jobs.fleet.options import FleetKeywords, FleetOptions
from deltarank.jobs.fleet.plan import FleetPlan
from deltarank.jobs.fleet.rank_plan import PlanOptions, plan_ranks
from deltarank.jobs.fleet.sketches import encoded_sketch, length_for

__all__ = [
    "FleetKeywords",
    "FleetOptions",
    "FleetPlan",
    "PlanOptions",
    "encoded_sketch",
    "find_kinship",
    "fleet",
    "length_for",
    "plan_fleet",
    "plan_ranks",
]
