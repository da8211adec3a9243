"""`deltarank endpoints`: whether two OpenAI-compatible endpoints serve the same model."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deltarank.cli.check import check_endpoints, check_option
from deltarank.cli.endpoint_weights import (
    identification_table,
    read_weights_options,
    watching_weights,
    weights_options,
)
from deltarank.cli.help import Command
from deltarank.cli.loading import loading
from deltarank.cli.options import force_option, json_option, number_option, output_option, quiet_option
from deltarank.cli.streams import out, say_written, sayer, width, wrapped
from deltarank.results import (
    EndpointApi,
    EndpointResults,
    EndpointTestName,
    Identification,
    capability_rows,
    escape,
    figure,
    format_table,
)
from deltarank.system import Default

if TYPE_CHECKING:
    from deltarank.jobs.endpoints import Watchers

DEFAULT_KEY = "OPENAI_API_KEY"
_PROMPTS_BETWEEN_LINES = 5
_AN_ENDPOINT = "MODEL@URL: a model and the address of an OpenAI-compatible API, as far as /v1"


@click.command(
    cls=Command,
    short_help="Find out whether two endpoints serve the same model, or which model one serves.",
    arguments={
        "a": f"{_AN_ENDPOINT}.",
        "b": "The other endpoint, named likewise. With --weights, one endpoint is enough.",
    },
    examples=[
        (
            "Does this host serve the model that I run here?",
            "deltarank endpoints my-12b@https://api.example.com/v1 my-12b@http://localhost:8000/v1 -o runs/host",
        ),
        (
            "Does it serve my finetune, a LoRA of it, a quantised copy, or the base?",
            "deltarank endpoints my-12b@https://api.example.com/v1 --weights org/base org/my-12b --yardstick q8_0,q4_0",
        ),
        (
            "What would that take? Nothing is sent:",
            "deltarank endpoints my-12b@https://api.example.com/v1 my-12b@http://localhost:8000/v1 --dry-run",
        ),
    ],
)
@click.argument("a")
@click.argument("b", required=False)
@output_option("RUN", "Folder for exchanges.jsonl, results.json and report.html", "runs/endpoints")
@click.option("--key-a", metavar="VAR", help="Environment variable with the key of A.  [default: OPENAI_API_KEY]")
@click.option("--key-b", metavar="VAR", help="Environment variable with the key of B.  [default: OPENAI_API_KEY]")
@click.option("--chat", "api", flag_value=EndpointApi.CHAT.value, help="Use /chat/completions.")
@click.option(
    "--completions",
    "api",
    flag_value=EndpointApi.COMPLETIONS.value,
    help="Use /completions.  [default: if both endpoints have it]",
)
@click.option(
    "--test",
    type=click.Choice([each.value for each in EndpointTestName]),
    help="Which test to make.  [default: the first of these that both endpoints allow]",
)
@click.option(
    "--tolerance",
    type=float,
    default=Default.ENDPOINT_TOLERANCE,
    show_default=True,
    metavar="NATS",
    help="Call them the same up to this KL divergence per token.",
)
@click.option(
    "--alpha",
    type=float,
    default=Default.ENDPOINT_ALPHA,
    show_default=True,
    metavar="P",
    help="Largest probability of a wrong verdict.",
)
@weights_options
@click.option("--seed", type=int, metavar="N", help="Seed of the prompts.  [default: a random secret, kept in RUN]")
@number_option("--max-requests", "Send at most so many requests.", Default.ENDPOINT_REQUESTS)
@number_option("--max-tokens", "Use at most so many tokens, of prompts and answers.", Default.ENDPOINT_TOKENS)
@click.option("--max-cost", type=float, metavar="COST", help="Spend at most so much; needs both prices.")
@click.option("--price-in", type=float, metavar="PRICE", help="Price of a million tokens of prompts.")
@click.option("--price-out", type=float, metavar="PRICE", help="Price of a million tokens of answers.")
@click.option(
    "--concurrency",
    type=click.IntRange(1, 32),
    default=Default.ENDPOINT_CONCURRENCY,
    show_default=True,
    metavar="N",
    help="Requests in flight at each endpoint.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0.1, 3600),
    default=Default.ENDPOINT_TIMEOUT,
    show_default=True,
    metavar="SECONDS",
    help="Wait at most so long for an answer.",
)
@click.option("--dry-run", is_flag=True, help="Print requests, tokens and cost of each test and stop; nothing is sent.")
@force_option
@check_option("they answer alike; undecided counts as not alike")
@click.option("--no-report", is_flag=True, help="Write results.json only, no page.")
@json_option("all figures")
@quiet_option
def endpoints(
    a: str,
    b: str | None,
    output: Path | None,
    dry_run: bool,
    check: bool,
    no_report: bool,
    as_json: bool,
    quiet: bool,
    **job: Any,
) -> None:
    """Find out, from outside, whether the endpoints A and B serve the same model, and how far apart they are.

    First probes what both can do. Then makes the cheapest test that they allow, with fresh prompts, A and B
    interleaved, and each also compared with itself. Stops when it is decided, or when a cap is reached.

    With --weights, finds out which model an endpoint serves: BASE, FINETUNE, BASE plus the rank-r delta at each
    servable rank, an adapter, or a quantised copy. Its sampled text, and the log-probabilities that it lists, are
    scored under each of them on this machine, one model in memory at a time.
    """
    import deltarank

    tell = sayer(quiet)
    job = {**job, **read_weights_options(job)}
    if dry_run:
        for name in ("output", "api", "seed", "concurrency", "timeout", "force"):
            job.pop(name, None)
        out("\n".join(escape(line) for line in deltarank.plan_endpoints(a, b, **job).lines()))
        return
    if os.environ.get(DEFAULT_KEY) and not (job["key_a"] and (job["key_b"] or b is None)):
        tell(f"Each endpoint without a key of its own gets the key in {DEFAULT_KEY}: see --key-a and --key-b.")
    folder = output or Path("runs", "endpoints")
    with loading():
        watchers = _watchers(tell)
    with watching_weights(job, quiet) as progress:
        found = deltarank.compare_endpoints(a, b, output=folder, watchers=watchers, progress=progress, **job)
    out(found.to_json() if as_json else "\n".join(endpoint_lines(found, width())))
    say_written((folder / "results.json", *(() if no_report else _write_page(found, folder))), tell)
    if check:
        check_endpoints(found)


def endpoint_lines(found: EndpointResults, columns: int) -> Iterator[str]:
    """The verdict, what the endpoints can do, and what was used."""
    for sentence in (*found.verdict.sentences, *map(escape, found.notes)):
        yield from wrapped(sentence, columns)
    for letter, identification in found.endpoints.identifications.items():
        yield ""
        yield from identification_table(identification, letter if found.endpoints.b else "")
    yield ""
    yield from format_table(capability_rows(*found.endpoints.endpoints))


def _write_page(found: EndpointResults, folder: Path) -> tuple[Path, ...]:
    from deltarank.report import write_endpoints_report

    return write_endpoints_report(found, folder)


def _watchers(tell: Callable[[str], None]) -> Watchers:
    """Say on stderr what was found so far."""
    from deltarank.jobs.endpoints import Watchers

    def on_probe(capabilities: Any, counts: Any) -> None:
        for side, each in capabilities.items():
            listed = f"{each.top_logprobs} log-probabilities a token" if each.top_logprobs else "no log-probabilities"
            tell(f"{side.upper()} answers at {each.api.value}, with {listed}.")
        for sentence in counts.sentences() if counts else ():
            tell(sentence)

    def on_prompt(prompts: int, log_e_different: float, log_e_same: float) -> None:
        if prompts % _PROMPTS_BETWEEN_LINES == 0:
            tell(
                f"{prompts} prompts: e-value {figure(_exp(log_e_different))} that they differ, "
                f"{figure(_exp(log_e_same))} that they are alike"
            )

    def on_candidates(lines: Sequence[str]) -> None:
        for line in lines:
            tell(escape(line))

    def on_round(side: str, found: Identification) -> None:
        tell(
            f"{side.upper()}: {found.answers} answers, {found.tokens:,} tokens: {len(found.left)} of "
            f"{len(found.candidates)} candidates left, the nearest is {escape(found.nearest)}"
        )

    return Watchers(
        on_probe,
        lambda name: tell(f"Test: {name.value}."),
        on_prompt,
        on_candidates,
        on_round,
    )


def _exp(log: float) -> float:
    import math

    return math.exp(min(log, 600.0))
