"""`deltarank compare`: the main command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

import deltarank
from deltarank.cli.check import check_option, check_results
from deltarank.cli.help import FINETUNE_OR_ADAPTER, Command
from deltarank.cli.options import (
    UserPath,
    audit_option,
    csv_option,
    device_option,
    dry_run_option,
    filter_options,
    force_option,
    input_options,
    json_option,
    no_report_option,
    number_option,
    output_option,
    quiet_option,
    ranks_option,
    solver_options,
)
from deltarank.cli.ray import ray_option
from deltarank.cli.run_command import RunRequest, default_output, print_plan, quieten_the_hub, run
from deltarank.results import DEFAULT_RANKS, parse_ranks
from deltarank.system import Default


@click.command(
    cls=Command,
    short_help="Measure how much of a finetune a LoRA keeps.",
    arguments=FINETUNE_OR_ADAPTER,
    examples=[
        ("What does a LoRA keep of a finetune, at each rank?", "deltarank compare org/base org/finetune -o runs/mine"),
        (
            "Only two ranks, of the attention:",
            "deltarank compare base/ finetune/ --ranks 16,64 --include '*self_attn*'",
        ),
        (
            "In CI: fail if rank 64 loses too much:",
            "deltarank compare base/ finetune/ --ranks 64 --check --max-error 0.3",
        ),
    ],
)
@click.argument("base")
@click.argument("finetune")
@output_option("RUN", "Folder for the results", "runs/ and the finetune's name")
@input_options
@ranks_option("Ranks to measure", DEFAULT_RANKS)
@solver_options
@device_option()
@filter_options
@audit_option
@click.option(
    "--calibration-text",
    "calibration_texts",
    type=UserPath(),
    multiple=True,
    metavar="TEXT",
    help="A .txt, .md or .jsonl file or a folder that FINETUNE reads, to measure what a truncation loses of the "
    "outputs of each layer; repeatable. Needs memory for the whole model.",
)
@number_option("--calibration-tokens", "Tokens of the calibration texts to read.", Default.ACTIVATION_TOKENS)
@check_option("this is a finetune of BASE, and each matrix could be measured")
@click.option(
    "--max-error",
    type=click.FloatRange(0, 1),
    metavar="X",
    help="With --check: largest relative error ||D - D_r|| / ||D|| that is accepted, at the highest of --ranks.",
)
@force_option
@ray_option
@dry_run_option
@no_report_option
@json_option("the results (or the plan)")
@csv_option
@quiet_option
def compare(
    output: Path | None,
    ranks: tuple[str, ...],
    check: bool,
    max_error: float | None,
    force: bool,
    dry_run: bool,
    as_json: bool,
    as_csv: bool,
    no_report: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Measure how much of the change from BASE to FINETUNE an extracted LoRA keeps, at every rank.

    Writes RUN/results.json, RUN/report.html and pictures, and prints a table and a verdict. To resume an
    interrupted run, repeat the same command.
    """
    if as_csv and (as_json or dry_run):
        raise click.UsageError("--csv cannot be combined with --json or --dry-run.")
    if max_error is not None and not check:
        raise click.UsageError("--max-error is only used with --check.")
    if check and dry_run:
        raise click.UsageError("--check cannot be combined with --dry-run.")
    quieten_the_hub(quiet)
    options["ranks"] = parse_ranks(ranks) if ranks else DEFAULT_RANKS
    folder = output or default_output(options["finetune"])
    if dry_run:
        print_plan(deltarank.plan, {**options, "output": folder, "force": force}, as_json=as_json)
        return
    request = RunRequest(folder, force, as_json, quiet, no_report=no_report, as_csv=as_csv)
    results = run(lambda **asked: deltarank.compare(**asked), options, request)
    if check:
        check_results(results, max_error)
