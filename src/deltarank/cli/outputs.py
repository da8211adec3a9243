"""`deltarank outputs`: what the loss does to what the model says."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

import deltarank
from deltarank.cli.fetch_option import fetch_option
from deltarank.cli.rank_list import parse_ranks
from deltarank.cli.run_command import Manner, default_output, print_plan, quieten_the_hub, run
from deltarank.servers import server_names

RANKS = (16, 64, 256)


@click.command(short_help="Measure what the loss does to what the model says.")
@click.argument("base")
@click.argument("finetune")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="RUN",
    help="Folder of the run; outputs join its results.  [default: runs/ and the finetune's name]",
)
@click.option(
    "--ranks",
    multiple=True,
    metavar="LIST",
    help=f"The base with rank-r deltas, as in 16,64.  [default: {','.join(map(str, RANKS))}]",
)
@click.option("--adapter", "adapters", multiple=True, metavar="DIR", help="The base with this adapter; repeatable.")
@click.option(
    "--server",
    type=click.Choice(server_names()),
    help="Apply adapters as this server would.  [default: as PEFT does]",
)
@click.option("--model", "models", multiple=True, metavar="REF", help="Another checkpoint; repeatable.")
@click.option(
    "--yardstick",
    "yardsticks",
    multiple=True,
    metavar="LIST",
    help="The finetune quantised: q8_0, q4_0, nf4, int8, fp8, as in q8_0,q4_0.",
)
@click.option("--text", "texts", multiple=True, metavar="PATH", help="A .txt, .md or .jsonl file to read, or a folder.")
@click.option("--prompts", metavar="FILE", help="Prompts to answer, a .txt or .jsonl file.  [default: 24 of our own]")
@click.option(
    "--attribute",
    type=click.Choice(["module", "layer", "matrix"]),
    help="Bring each of these to rank r alone, and rank them by KLD.",
)
@click.option("--samples", type=int, default=4, show_default=True, metavar="N", help="Answers to a prompt; 0: none.")
@click.option("--max-tokens", type=int, default=128, show_default=True, metavar="N", help="Tokens of an answer.")
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Of the answers and the intervals.")
@click.option("--batch", type=int, metavar="N", help="Documents in one pass.  [default: by memory]")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    show_default=True,
    help="Type that models run in; auto: float32 on a CPU, else the finetune's.",
)
@click.option(
    "--device", default="cpu", show_default=True, metavar="NAME", help="Where models run: cpu, cuda, cuda:1, mps."
)
@click.option("--base-revision", metavar="REV", help="Branch, tag or commit of BASE on the Hub.")
@click.option("--revision", metavar="REV", help="Branch, tag or commit of FINETUNE on the Hub.")
@fetch_option
@click.option("--trust-remote-code", is_flag=True, help="Run a program that came with a checkpoint.")
@click.option("--force", is_flag=True, help="Replace other outputs, or another run, in RUN.")
@click.option("--dry-run", is_flag=True, help="Print the plan with its figures and stop: no weight is read.")
@click.option("--json", "as_json", is_flag=True, help="Print the results (or the plan) as JSON, alone, on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="No progress and no remarks on stderr.")
@click.pass_context
def outputs(
    context: click.Context,
    /,
    output: Path | None,
    ranks: tuple[str, ...],
    yardsticks: tuple[str, ...],
    force: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    **job: Any,
) -> None:
    """Compare what FINETUNE predicts and writes with what is served in its place.

    Candidates are BASE with a rank-r delta, with an adapter, other checkpoints, FINETUNE quantised; BASE alone and two
    controls are always among them. They read --text and the finetune's own answers, and answer the prompts themselves.
    Writes into RUN/results.json and RUN/report.html. A run that was stopped goes on when the same command is given
    again.
    """
    job["ranks"] = parse_ranks(ranks) if ranks else RANKS
    job["yardsticks"] = tuple(word for text in yardsticks for word in text.replace(",", " ").split())
    quieten_the_hub(quiet)
    if dry_run:
        print_plan(deltarank.plan_outputs(**job), as_json=as_json)
        return
    command = shlex.join(["deltarank", *(context.obj or ())])
    manner = Manner(output or default_output(job["finetune"]), force, as_json, quiet, command)
    remark = " Getting ready to run models takes some seconds."
    run(lambda **asked: deltarank.outputs(**asked), job, manner, remark=remark)
