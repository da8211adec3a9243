"""results.json of a run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from deltarank.jobs.endpoints.known_weights import KnownWeights
from deltarank.results import EndpointResults
from deltarank.runtime import RESULTS, as_output_error
from deltarank.system import write_text_atomically

if TYPE_CHECKING:
    from deltarank.jobs.endpoints.known_models import KnownModels


def with_weights(results: EndpointResults, known: KnownWeights | None, models: KnownModels | None) -> EndpointResults:
    """With the weights among the settings, and the commits that they have on the Hub."""
    if known is None:
        return results
    commits = {"commits": models.commits} if models is not None and models.commits else {}
    return replace(results, settings={**results.settings, "weights": {**known.to_plain(), **commits}})


def write_results(folder: Path, results: EndpointResults) -> None:
    with as_output_error(folder):
        write_text_atomically(folder / RESULTS, json.dumps(results.to_plain(), indent=1, allow_nan=False) + "\n")
