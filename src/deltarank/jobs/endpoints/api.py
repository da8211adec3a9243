"""The public functions of `endpoints`."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from deltarank.errors import UsageError
from deltarank.jobs.endpoints.asking import Asker
from deltarank.jobs.endpoints.job import EndpointsJob, Watchers
from deltarank.jobs.endpoints.known_weights import WEIGHTS_KEYWORDS, KnownWeights, open_weights
from deltarank.jobs.endpoints.options import Caps, EndpointsOptions, make_options
from deltarank.jobs.endpoints.plan import EndpointsPlan, plan_prompts
from deltarank.jobs.endpoints.spending import Spending
from deltarank.jobs.endpoints.stored_results import with_weights, write_results
from deltarank.openai_api import EXCHANGES, EndpointClient, EndpointRef, parse_endpoint
from deltarank.results import EndpointResults
from deltarank.runtime import ProgressListener, Ref, RunFolder, read_identity, utc_timestamp
from deltarank.system import Default, user_path

_NEEDED_BYTES = 20e6


def compare_endpoints(
    a: str,
    b: str | None = None,
    *,
    output: str | os.PathLike[str],
    key_a: str | None = None,
    key_b: str | None = None,
    api: str | None = None,
    test: str | None = None,
    tolerance: float = Default.ENDPOINT_TOLERANCE,
    alpha: float = Default.ENDPOINT_ALPHA,
    seed: int | None = None,
    concurrency: int = Default.ENDPOINT_CONCURRENCY,
    timeout: float = Default.ENDPOINT_TIMEOUT,
    force: bool = False,
    watchers: Watchers | None = None,
    progress: ProgressListener | None = None,
    weights: tuple[Ref, Ref] | None = None,
    **rest: Any,
) -> EndpointResults:
    """Whether two OpenAI-compatible endpoints, each `MODEL@URL`, serve the same model; and which of known models.

    Args:
        output: the folder of the run: exchanges.jsonl, results.json. A stopped run is resumed by the same call.
        key_a, key_b: the environment variables with the keys; None: OPENAI_API_KEY, if it is set.
        api: "completions" or "chat"; None: completions if both have it.
        test: the name of a test; None: the cheapest that both allow.
        tolerance: nats per token up to which endpoints are the same.
        alpha: the largest probability of a wrong verdict.
        seed: of the prompts; None: a random secret, kept in the folder.
        weights: the base and the finetune. Then each endpoint's sampled text, and the log-probabilities that it lists,
            are scored under them and their like. One endpoint is enough: `b` is None.
        progress: receives the progress of preparing the models.
        rest: with `weights`, `ranks` r of the candidates base + D_r (every servable rank by default), `adapters`, and
            `yardsticks`, formats that the finetune is quantised in; `server`, `device`, `dtype`, `base_revision`,
            `revision`, `fetch`, `trust_remote_code` as in `outputs`. The caps: `max_requests`, `max_tokens`,
            `max_cost`, `price_in` and `price_out` (per million tokens).

    Raises:
        UsageError: an argument is invalid.
        JobError: an endpoint cannot be reached, refuses the key, or gives no usable answers.
        OutputError: the folder cannot be written, or holds something else.
    """
    known, caps = _split(weights, rest)
    refs = _refs(a, b, key_a, key_b, known)
    folder = user_path(output)
    options = make_options(_known_seed(folder, force) if seed is None else seed, api, test, tolerance, alpha)
    spending = Spending(Caps(**caps))
    with (
        open_weights(known, folder, progress or ProgressListener()) as models,
        _run_folder(folder, refs, options, known) as kept,
    ):
        records = kept.open(force=force, needed_bytes=_NEEDED_BYTES)
        clients = {side: EndpointClient(side.upper(), ref, timeout=timeout) for side, ref in refs.items()}
        both = dict.fromkeys(refs, spending)
        with closing(Asker(clients, both, records, kept.append, concurrency=concurrency)) as asker:
            job = EndpointsJob(refs, options, asker, utc_timestamp(), watchers or Watchers(), models)
            results = with_weights(job.run(), known, models)
        write_results(folder, results)
    return results


def plan_endpoints(
    a: str,
    b: str | None = None,
    *,
    key_a: str | None = None,
    key_b: str | None = None,
    test: str | None = None,
    tolerance: float = Default.ENDPOINT_TOLERANCE,
    alpha: float = Default.ENDPOINT_ALPHA,
    progress: ProgressListener | None = None,
    weights: tuple[Ref, Ref] | None = None,
    **rest: Any,
) -> EndpointsPlan:
    """What `compare_endpoints` would ask and use at most. Sends nothing.

    With `weights`, the models are run here on built-in texts, to say how many tokens tell them apart.

    Args:
        rest: the caps, and what goes with `weights`; see `compare_endpoints`.
    """
    known, caps = _split(weights, rest)
    refs = _refs(a, b, key_a, key_b, known)
    options = make_options(0, None, test, tolerance, alpha)
    with (
        tempfile.TemporaryDirectory() as folder,
        open_weights(known, Path(folder), progress or ProgressListener()) as models,
    ):
        candidates = () if models is None else tuple(models.plan_lines(options.alpha, options.tolerance))
        known_tokens = None if models is None else models.mean_tokens(plan_prompts())
    return EndpointsPlan(refs["a"], refs.get("b"), options, Caps(**caps), candidates, known_tokens)


def _split(weights: tuple[Ref, Ref] | None, rest: Mapping[str, Any]) -> tuple[KnownWeights | None, dict[str, Any]]:
    """The weights with what goes with them, and the caps."""
    given = {name: rest[name] for name in WEIGHTS_KEYWORDS if name in rest}
    return KnownWeights.of(weights, **given), {name: rest[name] for name in rest.keys() - given.keys()}


def _refs(
    a: str, b: str | None, key_a: str | None, key_b: str | None, known: KnownWeights | None
) -> dict[str, EndpointRef]:
    if b is None and known is None:
        raise UsageError(
            "One endpoint alone cannot be compared with anything.",
            cure="Give a second endpoint, or what the endpoint may serve: --weights BASE FINETUNE.",
            slug="endpoint-alone",
        )
    first = parse_endpoint(a, key_a)
    return {"a": first} if b is None else {"a": first, "b": parse_endpoint(b, key_b)}


def _identity(refs: Mapping[str, EndpointRef], options: EndpointsOptions, known: KnownWeights | None) -> dict[str, Any]:
    named = {side: {"model": ref.model, "url": ref.url} for side, ref in refs.items()}
    return {**named, "options": options.to_plain(), **({} if known is None else {"weights": known.to_plain()})}


def _run_folder(
    folder: Path, refs: Mapping[str, EndpointRef], options: EndpointsOptions, known: KnownWeights | None
) -> RunFolder:
    """With weights, it continues a run without them: nothing that was asked then was about what is served."""
    without = [] if known is None else [_identity(refs, options, None)]
    return RunFolder(folder, _identity(refs, options, known), records=EXCHANGES, continues=without)


def _known_seed(folder: Path, force: bool) -> int:
    """That of the run in the folder, so that it is resumed with the prompts that it began with; else a new one."""
    found = None if force else read_identity(folder)
    known = found.get("options", {}).get("seed") if isinstance(found, dict) else None
    return known if type(known) is int else secrets.randbits(48)
