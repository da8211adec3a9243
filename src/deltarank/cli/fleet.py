"""`deltarank fleet`: many finetunes of one base."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from deltarank.cli.help import A_MODEL, Command
from deltarank.cli.loading import loading
from deltarank.cli.memory_size import memory_size
from deltarank.cli.options import (
    UserPath,
    audit_option,
    base_revision_option,
    device_option,
    dry_run_option,
    fetch_option,
    filter_options,
    force_option,
    json_option,
    output_option,
    quiet_option,
    ranks_option,
    server_option,
    solver_options,
)
from deltarank.cli.ray import ray_option
from deltarank.cli.run_command import has_current_report, print_plan, quieten_the_hub
from deltarank.cli.streams import in_colour, out, say_written, sayer, width
from deltarank.errors import UsageError
from deltarank.results import DEFAULT_RANKS, Results, parse_ranks, run_name
from deltarank.servers import DEFAULT_SERVER
from deltarank.system import Default

if TYPE_CHECKING:
    from deltarank.jobs.fleet import PlanOptions
    from deltarank.results import Fleet
    from deltarank.runtime import ProgressListener


@click.command(
    cls=Command,
    short_help="Compare many finetunes with one base, which is read once.",
    arguments={
        "finetunes": f"The finetunes, or LoRA adapters on BASE, each {A_MODEL}; or a folder of such folders.",
    },
    examples=[
        ("What does a LoRA keep of each finetune?", "deltarank fleet org/base --list finetunes.txt -o fleet"),
        (
            "Which rank should vLLM's slots have?",
            "deltarank fleet org/base --list finetunes.txt -o fleet --max-error 0.5 --slots 8 --gpu-memory 24GB",
        ),
        (
            "A LoRA of rank 16 of each, for vLLM:",
            "deltarank fleet base/ finetunes/* -o fleet --extract -r 16 --server vllm",
        ),
        ("What would be read, and how long does it take?", "deltarank fleet base/ finetunes/* -o fleet --dry-run"),
    ],
)
@click.argument("base")
@click.argument("finetunes", nargs=-1, metavar="FINETUNE...")
@click.option(
    "--list",
    "listed",
    type=UserPath(),
    metavar="FILE",
    help="A file that names a finetune on each line; what follows a # is a comment. Relative paths are relative to "
    "the current folder.",
)
@output_option("FLEET", "Folder for the results", "runs/ and the base's name, with -fleet")
@base_revision_option
@fetch_option
@ranks_option("Ranks to measure", DEFAULT_RANKS)
@solver_options
@device_option()
@filter_options
@audit_option
@click.option(
    "--max-error",
    type=float,
    metavar="X",
    help="Plan the ranks: the largest relative error ||D - D_r|| / ||D|| that a LoRA may have.",
)
@click.option(
    "--max-kld",
    type=float,
    metavar="X",
    help="Plan the ranks by the outputs that were measured: the largest KL divergence, in nats per token.",
)
@click.option("--slots", type=int, metavar="N", help="How many adapters the plan serves at once.  [default: all]")
@click.option(
    "--gpu-memory",
    type=memory_size,
    metavar="SIZE",
    help="What the base and the slots of the plan must fit, such as 24GB.  [default: any]",
)
@click.option(
    "--tensor-parallel",
    type=int,
    metavar="N",
    help="Over how many GPUs the plan divides each model; --gpu-memory is of each.  [default: 1]",
)
@click.option("--extract", "extracts", is_flag=True, help="Extract an adapter of each finetune while BASE is read.")
@click.option(
    "-r",
    "--rank",
    "adapter_rank",
    type=click.IntRange(min=1),
    metavar="N",
    help=f"With --extract: rank of the adapters.  [default: {Default.ADAPTER_RANK}]",
)
@server_option("With --extract: the server whose rules the adapters follow.", DEFAULT_SERVER)
@click.option("--no-report", is_flag=True, help="Write no pages.")
@force_option
@ray_option
@dry_run_option
@json_option("fleet.json (or the plan)")
@quiet_option
def fleet(
    base: str,
    finetunes: tuple[str, ...],
    listed: Path | None,
    output: Path | None,
    ranks: tuple[str, ...],
    force: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    no_report: bool,
    max_error: float | None,
    max_kld: float | None,
    slots: int | None,
    gpu_memory: int | None,
    tensor_parallel: int | None,
    extracts: bool,
    adapter_rank: int | None,
    **options: Any,
) -> None:
    """Compare each FINETUNE with BASE, as `deltarank compare` does, while BASE is read only once.

    Writes FLEET/fleet.json, fleet.csv and fleet.html, and FLEET/NAME/results.json and report.html for each finetune.
    One that cannot be measured is a row with its reason. To resume an interrupted fleet, repeat the same command; with
    more finetunes in the list, only these are measured. With --max-error or --max-kld, a plan says which rank serves
    them in the least memory; another plan for a finished fleet takes seconds.
    """
    options["adapter_rank"] = _adapter_rank(adapter_rank, extracts=extracts)
    quieten_the_hub(quiet)
    import deltarank

    limits = {"max_error": max_error, "max_kld": max_kld, "slots": slots, "gpu_memory": gpu_memory}
    plan = _plan_options(limits, tensor_parallel)
    folder = output or Path("runs", f"{run_name(base)}-fleet")
    options |= {"ranks": parse_ranks(ranks) if ranks else DEFAULT_RANKS, "output": folder, "force": force}
    given = [*finetunes, *(_lines_of(listed) if listed else ())]
    if dry_run:
        print_plan(lambda **asked: deltarank.plan_fleet(base, given, **asked), options, as_json=as_json)
        return
    tell = sayer(quiet)
    with loading():
        from deltarank.cli.progress import watching
    with watching(quiet) as progress:
        measured = deltarank.fleet(base, given, plan=plan, progress=progress, **options)
        pages = () if no_report else (_write_pages(measured, folder, progress),)
    if as_json:
        out(measured.to_json())
    else:
        from deltarank.report import fleet_summary

        out(fleet_summary(measured, colour=in_colour(), width=width()))
    say_written((folder / "fleet.json", folder / "fleet.csv", *pages), tell)


def _lines_of(path: Path) -> list[str]:
    """The references in a list: one a line. A # begins a comment at the start of a line or after a space."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"Cannot read {path}: {getattr(error, 'strerror', None) or 'it is not UTF-8 text'}.",
            cure="Give a text file with one reference on each line.",
            slug="list-unreadable",
        ) from None
    references = (f" {line}".split(" #")[0].strip() for line in lines)
    return [reference for reference in references if reference]


def _adapter_rank(rank: int | None, *, extracts: bool) -> int | None:
    """None if no adapters are asked for."""
    if rank is not None and not extracts:
        raise click.UsageError("--rank is only used with --extract; --ranks are those to measure.")
    given = click.get_current_context().get_parameter_source("server")
    if given is not None and given is not ParameterSource.DEFAULT and not extracts:
        raise click.UsageError("--server is only used with --extract.")
    return (rank or Default.ADAPTER_RANK) if extracts else None


def _plan_options(limits: dict[str, Any], tensor_parallel: int | None) -> PlanOptions | None:
    """None if no plan is asked for.

    Raises:
        UsageError: a plan is asked for without a limit, or with one that cannot be kept.
    """
    import deltarank

    if all(value is None for value in (tensor_parallel, *limits.values())):
        return None
    return deltarank.PlanOptions(**limits, tensor_parallel=1 if tensor_parallel is None else tensor_parallel)


def _write_pages(measured: Fleet, folder: Path, progress: ProgressListener) -> Path:
    """The page of each finetune that lacks a current one, and that of the fleet with links to them."""
    from deltarank.report import write_fleet_page, write_page

    for each in measured.measured:
        run = folder / str(each.run)
        if not has_current_report(run):
            progress.stage(f"the page of {each.name}")
            write_page([Results.load(run)], run)
    return write_fleet_page(measured, folder)
