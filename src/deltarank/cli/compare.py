"""`deltarank compare`: the main job."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

import deltarank
from deltarank.cli.fetch_option import fetch_option
from deltarank.cli.rank_list import parse_ranks
from deltarank.cli.run_command import Manner, default_output, print_plan, quieten_the_hub, run
from deltarank.cli.which_base import find_base, refuse_others
from deltarank.results import DEFAULT_RANKS


@click.command(short_help="Measure what a LoRA would keep of a finetune.")
@click.argument("refs", nargs=-1, metavar="BASE FINETUNE")
@click.option(
    "--base-candidates",
    is_flag=True,
    help="Only say which base FINETUNE came from: --base-candidates A B C FINETUNE, from a sample of matrices.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="RUN",
    help="Folder for the results.  [default: runs/ and the finetune's name]",
)
@click.option("--base-revision", metavar="REV", help="Branch, tag or commit of BASE on the Hub.")
@click.option("--revision", metavar="REV", help="Branch, tag or commit of FINETUNE on the Hub.")
@fetch_option
@click.option(
    "--ranks",
    multiple=True,
    metavar="LIST",
    help=f"Ranks to measure, as in 16,64; may be repeated.  [default: {','.join(map(str, DEFAULT_RANKS))}]",
)
@click.option(
    "--solver",
    type=click.Choice(["auto", "exact", "krylov"]),
    default="auto",
    show_default=True,
    help="exact: the whole spectrum; krylov: the leading part, to --tolerance; auto: the faster.",
)
@click.option(
    "--tolerance",
    type=float,
    default=1e-4,
    show_default=True,
    metavar="X",
    help="How far krylov may be off, in cosine distance.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float64"]),
    default="float32",
    show_default=True,
    help="Precision of the computation.",
)
@click.option(
    "--device", default="cpu", show_default=True, metavar="NAME", help="Where to compute: cpu, cuda, cuda:1, mps."
)
@click.option("--include", multiple=True, metavar="GLOB", help="Measure only tensors that match; may be repeated.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Leave out tensors that match; may be repeated.")
@click.option(
    "--audit",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="Measure N matrices, drawn by chance, again in float64 by a full SVD.",
)
@click.option("--force", is_flag=True, help="Replace another run that lies in RUN.")
@click.option("--dry-run", is_flag=True, help="Print the plan and stop: no tensor is read.")
@click.option("--json", "as_json", is_flag=True, help="Print the results (or the plan) as JSON, alone, on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="No progress and no remarks on stderr.")
@click.pass_context
def compare(
    context: click.Context,
    /,
    refs: tuple[str, ...],
    base_candidates: bool,
    output: Path | None,
    ranks: tuple[str, ...],
    force: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    **job: Any,
) -> None:
    """Measure how much of FINETUNE a LoRA extracted against BASE would keep.

    Writes RUN/results.json, RUN/report.html and pictures, and prints a table and a verdict. A run that was stopped
    goes on where it stopped when the same command is given again.
    """
    quieten_the_hub(quiet)
    _check_number(context, refs, several=base_candidates)
    if base_candidates:
        refuse_others(context)
        find_base(refs, job, as_json=as_json, quiet=quiet)
        return
    job |= {"base": refs[0], "finetune": refs[1], "ranks": parse_ranks(ranks)}
    if dry_run:
        print_plan(deltarank.plan(**job), as_json=as_json)
        return
    command = shlex.join(["deltarank", *(context.obj or ())])
    manner = Manner(output or default_output(job["finetune"]), force, as_json, quiet, command)
    run(lambda **asked: deltarank.compare(**asked), job, manner)


def _check_number(context: click.Context, refs: tuple[str, ...], *, several: bool) -> None:
    """Raises click's own errors, in click's own words."""
    if len(refs) < 2:
        wanted = "FINETUNE" if refs else "BASE"
        raise click.UsageError(f"Missing argument '{wanted}'.", context)
    if len(refs) > 2 and not several:
        extra = " ".join(refs[2:])
        raise click.UsageError(
            f"Got unexpected extra arguments ({extra}). To find out which base it is, add --base-candidates.", context
        )
