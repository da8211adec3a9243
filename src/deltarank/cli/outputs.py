"""`deltarank outputs`: predictions and texts of the finetune beside those of what is served in its place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

import deltarank
from deltarank.cli.help import Command
from deltarank.cli.options import (
    device_option,
    dry_run_option,
    force_option,
    input_options,
    json_option,
    no_report_option,
    number_option,
    output_option,
    quiet_option,
    ranks_option,
    server_option,
)
from deltarank.cli.ray import ray_option
from deltarank.cli.run_command import RunRequest, default_output, print_plan, quieten_the_hub, run
from deltarank.cli.streams import sayer
from deltarank.errors import UsageError
from deltarank.results import DEFAULT_OUTPUTS_RANKS, PREFERRED_RANK, Results, parse_ranks
from deltarank.system import Default


@click.command(
    cls=Command,
    short_help="Measure how the model's predictions and texts change.",
    examples=[
        (
            "Rank-16 and rank-64 LoRAs beside two quantised copies, without generated answers:",
            "deltarank outputs org/base org/finetune --ranks 16,64 --yardstick q8_0,q4_0 --text book.txt --samples 0",
        ),
        ("An adapter, as vLLM applies it:", "deltarank outputs org/base org/finetune --adapter my-lora --server vllm"),
        (
            "Rank 16 and an adapter, added to a run that has other ranks:",
            "deltarank outputs org/base org/finetune -o runs/org--finetune --ranks 16 --adapter my-lora",
        ),
        ("How long would it take?", "deltarank outputs org/base org/finetune --dry-run"),
    ],
)
@click.argument("base")
@click.argument("finetune")
@output_option("RUN", "Folder of the run; the outputs are added to its results", "runs/ and the finetune's name")
@input_options
@ranks_option("Ranks r of the candidates base + rank-r delta", DEFAULT_OUTPUTS_RANKS)
@click.option("--adapter", "adapters", multiple=True, metavar="DIR", help="Candidate: base + adapter; repeatable.")
@server_option("Apply adapters as this server does.", None)
@click.option("--model", "models", multiple=True, metavar="REF", help="Candidate: another checkpoint; repeatable.")
@click.option(
    "--yardstick",
    "yardsticks",
    multiple=True,
    metavar="LIST",
    help="Candidates: the finetune quantised to q8_0, q4_0, nf4, int8 or fp8, such as q8_0,q4_0.",
)
@click.option(
    "--text",
    "texts",
    multiple=True,
    metavar="PATH",
    help="A .txt, .md or .jsonl file, or a folder, to score; repeatable.",
)
@click.option("--prompts", metavar="FILE", help="A .txt or .jsonl file of prompts to answer.  [default: 24 built-in]")
@click.option(
    "--attribute",
    type=click.Choice(["module", "layer"]),
    help="Truncate one module (or layer) at a time to the headline rank, and sort them by the resulting KLD.",
)
@click.option(
    "--quick",
    is_flag=True,
    help=f"A first result in a few minutes: rank {PREFERRED_RANK}, {Default.QUICK_SAMPLES} answer of "
    f"{Default.QUICK_MAX_TOKENS} tokens per prompt; the intervals are wider.",
)
@number_option("--samples", "Answers per prompt; 0: none.", Default.SAMPLES)
@number_option("--max-tokens", "Longest answer, in tokens.", Default.MAX_TOKENS)
@number_option("--seed", "Seed of the answers and the intervals.", Default.SEED)
@click.option(
    "--batch",
    type=int,
    metavar="N",
    help="Documents, or answers, processed together.  [default: documents of 2,048 tokens in all (8,192 on a GPU); "
    "8 to 32 answers]",
)
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default=Default.MODEL_DTYPE,
    show_default=True,
    help="Precision in which models run; auto: float32 on a CPU, else the finetune's.",
)
@device_option("Where models run")
@click.option("--trust-remote-code", is_flag=True, help="Run Python code that comes with a checkpoint.")
@click.option(
    "--update-cards",
    is_flag=True,
    help="State what was measured on the model card of each --adapter that `extract` wrote, and in deltarank.json.",
)
@force_option
@ray_option
@dry_run_option
@no_report_option
@json_option("the results (or the plan)")
@quiet_option
def outputs(
    output: Path | None,
    ranks: tuple[str, ...],
    yardsticks: tuple[str, ...],
    force: bool,
    dry_run: bool,
    as_json: bool,
    no_report: bool,
    quiet: bool,
    update_cards: bool,
    **options: Any,
) -> None:
    """Compare the predictions and texts of FINETUNE with those of candidates that may be served in its place.

    Candidates are: BASE plus a rank-r delta, adapters, other checkpoints and quantised copies of FINETUNE. BASE alone,
    the unlimited-rank delta, two controls and, unless --quick is given, the truncation alone (FINETUNE with its
    matrices truncated) are always included. All are scored on --text and on the finetune's answers; all but the
    truncation alone and the controls answer the prompts, and with --quick neither do the unlimited-rank delta and the
    quantised copies. Adds the results to RUN/results.json and RUN/report.html. To resume an interrupted run, repeat the
    same command. Candidates that a finished RUN does not have are added to it: only they are measured, on the same
    texts, and settings that are not given are those of the run.
    """
    options = _without_defaults(options)
    if ranks:
        options["ranks"] = parse_ranks(ranks)
    if yardsticks:
        options["yardsticks"] = tuple(word for text in yardsticks for word in text.replace(",", " ").split())
    quieten_the_hub(quiet)
    folder = output or default_output(options["finetune"])
    if dry_run:
        print_plan(deltarank.plan_outputs, {**options, "output": folder, "force": force}, as_json=as_json)
        return
    cards = _adapters_with_cards(options.get("adapters", ())) if update_cards else ()
    request = RunRequest(folder, force, as_json, quiet, no_report=no_report)
    sayer(quiet)("Loading the libraries that run models takes some seconds.")
    run(lambda **asked: deltarank.outputs(**asked), options, request, before_printing=lambda done: _update(cards, done))


def _adapters_with_cards(folders: Sequence[str]) -> list[Path]:
    """Raises UsageError or ResultsError, before anything is measured, if one of them was not written by `extract`."""
    if not folders:
        raise UsageError(
            "--update-cards needs an adapter.",
            cure="Give the folder that `deltarank extract` wrote with --adapter.",
            slug="no-adapter",
        )
    return [deltarank.ExtractedAdapter.load(Path(folder).expanduser()).folder for folder in folders]


def _update(cards: Sequence[Path], results: Results) -> tuple[Path, ...]:
    """The model cards on which the results were stated."""
    return tuple(deltarank.update_card(folder, results).folder / "README.md" for folder in cards)


def _without_defaults(options: dict[str, Any]) -> dict[str, Any]:
    """Without what was not given: --quick has other defaults, and a finished run its own settings."""
    source = click.get_current_context().get_parameter_source
    return {name: value for name, value in options.items() if source(name) is not ParameterSource.DEFAULT}
