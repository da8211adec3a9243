"""Analyses the exchanges of a run again, offline: with the weights, if they are still on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltarank.checkpoints import hub_cache_only
from deltarank.errors import DeltarankError, ResultsError
from deltarank.jobs.endpoints.asking import Asker
from deltarank.jobs.endpoints.identified import Identified
from deltarank.jobs.endpoints.job import EndpointsJob
from deltarank.jobs.endpoints.known_weights import KnownWeights, open_weights
from deltarank.jobs.endpoints.options import Caps, EndpointsOptions, make_options
from deltarank.jobs.endpoints.spending import Spending
from deltarank.jobs.endpoints.stored_results import with_weights, write_results
from deltarank.openai_api import EXCHANGES, EndpointRef
from deltarank.results import EndpointResults, parse_record
from deltarank.runtime import ProgressListener, read_identity, utc_timestamp
from deltarank.system import user_path

if TYPE_CHECKING:
    from deltarank.jobs.endpoints.known_models import KnownModels

_NOT_HERE = "the weights are not on this machine, neither as files nor whole in the Hub's cache."


def analyse_exchanges(run: str | os.PathLike[str]) -> EndpointResults:
    """The results of the exchanges in the folder of a run, computed again and written to its results.json. Offline.

    Weights that are not on this machine are not needed: then what the run said of them is kept, and a note says so.

    Raises:
        ResultsError: (slug "results-unreadable") the folder has no run of `endpoints`.
    """
    folder = user_path(run)
    refs, options, known, records = _read(folder)
    before = _stored(folder)
    nothing = Spending(Caps(max_requests=1, max_tokens=1))
    with (
        _at_hand(known, folder, before) as (models, why_not),
        closing(Asker({}, dict.fromkeys(refs, nothing), records, lambda record: None, concurrency=1)) as asker,
    ):
        job = EndpointsJob(refs, options, asker, utc_timestamp(), known=models)
        if why_not is not None:
            job.identified = _identified_before(before, refs)
        results = with_weights(job.run(), known, models)
    if why_not is not None and before is not None:
        kept = f"Which model is served was not analysed again, and is as the run found it: {why_not}"
        results = replace(results, settings={**results.settings, **_weights_of(before)}, notes=(kept,))
    write_results(folder, results)
    return results


_Read = tuple[dict[str, EndpointRef], EndpointsOptions, KnownWeights | None, list[dict[str, Any]]]


def _read(folder: Path) -> _Read:
    identity = read_identity(folder)
    try:
        refs = {side: EndpointRef(identity[side]["model"], identity[side]["url"]) for side in "ab" if side in identity}
        given = identity["options"]
        options = make_options(given["seed"], given["api"], given["test"], given["tolerance"], given["alpha"])
        known = KnownWeights.of_plain(identity["weights"]) if "weights" in identity else None
        lines = (folder / EXCHANGES).read_bytes().splitlines()
    except (OSError, KeyError, TypeError, ValueError):
        raise ResultsError(
            f"Cannot read the exchanges in {folder}.",
            cure="Give the folder that `deltarank endpoints -o` wrote, with run.json and exchanges.jsonl.",
            slug="results-unreadable",
        ) from None
    return refs, options, known, [record for line in lines if (record := parse_record(line)) is not None]


def _stored(folder: Path) -> EndpointResults | None:
    """None: the run was interrupted."""
    try:
        return EndpointResults.load(folder)
    except ResultsError:
        return None


@contextmanager
def _at_hand(
    known: KnownWeights | None, folder: Path, before: EndpointResults | None
) -> Iterator[tuple[KnownModels | None, str | None]]:
    """The models, or why they cannot be opened, as a sentence; neither without weights.

    Those of the Hub are read from its cache, at the commits of the run.
    """
    with ExitStack() as opened:
        models, why_not = None, None
        if known is not None:
            commits = {} if before is None else _weights_of(before).get("weights", {}).get("commits")
            try:
                opened.enter_context(hub_cache_only())
                pinned = known.at_commits(commits if isinstance(commits, dict) else {})
                models = opened.enter_context(open_weights(pinned, folder, ProgressListener()))
            except DeltarankError as error:
                why_not = _NOT_HERE if error.slug == "hub-unreachable" else error.message
        yield models, why_not


def _weights_of(before: EndpointResults) -> dict[str, Any]:
    given: Mapping[str, Any] | None = before.settings.get("weights")
    return {"weights": given} if isinstance(given, dict) else {}


def _identified_before(before: EndpointResults | None, refs: Mapping[str, EndpointRef]) -> Identified:
    if before is None:
        return Identified(problems=dict.fromkeys(refs, "the weights are not on this machine"))
    both = {"a": before.endpoints.identification, "b": before.endpoints.identification_b}
    return Identified({side: each for side, each in both.items() if each is not None})
