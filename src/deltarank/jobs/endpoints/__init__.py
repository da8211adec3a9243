"""Two OpenAI-compatible endpoints as black boxes: do they serve the same model, and how far are they apart?"""

from deltarank.jobs.endpoints.analysis import analyse_exchanges
from deltarank.jobs.endpoints.api import compare_endpoints, plan_endpoints
from deltarank.jobs.endpoints.job import Watchers
from deltarank.jobs.endpoints.plan import EndpointsPlan
from deltarank.results import EndpointResults

__all__ = [
    "EndpointResults",
    "EndpointsPlan",
    "Watchers",
    "analyse_exchanges",
    "compare_endpoints",
    "plan_endpoints",
]
