"""The library's functions: measure a fleet, or plan it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Unpack

from deltarank.checkpoints import SharedSource, check_fetch_mode, with_one_vocabulary
from deltarank.jobs.fleet.job import FleetJob
from deltarank.jobs.fleet.options import FleetKeywords, FleetOptions
from deltarank.jobs.fleet.plan import FleetPlan
from deltarank.jobs.fleet.rank_plan import PlanOptions
from deltarank.results import Fleet
from deltarank.runtime import ModelRef, ProgressListener, Ref, shows_keywords
from deltarank.system import Default, user_path


@shows_keywords(FleetKeywords, FleetOptions)
def fleet(
    base: Ref,
    finetunes: Sequence[Ref],
    *,
    output: Ref,
    force: bool = False,
    plan: PlanOptions | None = None,
    progress: ProgressListener | None = None,
    **keywords: Unpack[FleetKeywords],
) -> Fleet:
    """Compares many finetunes with one base, of which each tensor is read once.

    Each finetune ends as a run of its own, `output`/NAME/results.json, as `compare` measures it. One that cannot be
    measured is a row with its reason. The same call resumes after the process died. With more finetunes in the list,
    only these are measured.

    Args:
        base: a folder, a file of weights, or a Hub id, `org/name` or `org/name@revision`.
        finetunes: named likewise, or LoRA adapters in PEFT's format on the base. A folder that contains no model
            itself but several in the folders below it stands for these.
        output: the folder of the fleet: fleet.json, fleet.csv, and a folder for each finetune.
        force: replaces another fleet in `output`.
        plan: the limit and the memory of a rank plan; None: no plan. A finished fleet is planned again without being
            measured again.
        progress: receives the progress of the run.
        adapter_rank: with a rank, each finetune gets an adapter as `deltarank.extract` writes it, in
            `output`/NAME/adapter-rRANK-SERVER, while the base is in memory.
        server: the server whose rules these adapters follow.
        ranks, solver, tolerance, dtype, device, include, exclude, audit, base_revision, fetch: as for
            `deltarank.compare`.

    Raises:
        UsageError: an argument is not usable, or the list is empty.
        CheckpointError, HeaderError: the base cannot be read.
        OutputError: `output` holds something else, or cannot be written.
        JobError: (slug "no-finetune-measured") none of the finetunes could be measured.
    """
    progress = progress or ProgressListener()
    with _open(base, finetunes, keywords, progress) as job:
        return replace(job, plan_options=plan).run(user_path(output), force=force, progress=progress)


@shows_keywords(FleetKeywords, FleetOptions)
def plan_fleet(
    base: Ref, finetunes: Sequence[Ref], *, output: Ref, force: bool = False, **keywords: Unpack[FleetKeywords]
) -> FleetPlan:
    """What `fleet` would do, from the headers alone: no tensor is read, and no model is downloaded.

    Arguments and errors as for `fleet`. Nothing is written: of `output` it is checked that `fleet` can use it.
    """
    headers_only: FleetKeywords = {**keywords, "fetch": "stream"}
    with _open(base, finetunes, headers_only, ProgressListener()) as job:
        return job.plan(user_path(output), force=force)


@contextmanager
def _open(
    base: Ref, finetunes: Sequence[Ref], keywords: Mapping[str, Any], progress: ProgressListener
) -> Iterator[FleetJob]:
    """The job, with the base open; what is read of it, to compare its embedding and its head too, is counted."""
    others = dict(keywords)
    revision, fetch = others.pop("base_revision", None), check_fetch_mode(others.pop("fetch", Default.FETCH))
    options = FleetOptions(**others)
    progress.opening([str(base)])
    with ModelRef(base, revision).open(fetch, progress) as stored:
        shared = SharedSource(stored.source)
        counted = replace(stored, source=shared)
        yield FleetJob(with_one_vocabulary(counted, counted), shared, finetunes, options, fetch)
