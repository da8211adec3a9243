"""`deltarank extract`: a LoRA that a server will load, with the loss on its label."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import deltarank
from deltarank.cli.fetch_option import fetch_option
from deltarank.cli.loading import loading
from deltarank.cli.rank_list import parse_ranks
from deltarank.cli.run_command import default_output, print_plan, quieten_the_hub
from deltarank.cli.streams import one_line, out, sayer
from deltarank.errors import UsageError
from deltarank.results import count, format_table, percent
from deltarank.servers import DEFAULT_SERVER, kind_in_words, server_names

if TYPE_CHECKING:
    from deltarank.jobs.extract import ExtractedAdapter


@click.command(short_help="Write the best LoRA that a server will load.")
@click.argument("base")
@click.argument("finetune")
@click.option("-r", "--rank", default="64", show_default=True, metavar="N", help="The adapter's rank, or auto.")
@click.option(
    "--max-error",
    type=float,
    metavar="X",
    help="With --rank auto: the smallest servable rank with ||D - D_r|| / ||D|| of at most this.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="ADAPTER",
    help="Folder for the adapter.  [default: adapters/ and the finetune's name]",
)
@click.option(
    "--server",
    type=click.Choice(server_names()),
    default=DEFAULT_SERVER,
    show_default=True,
    help="Whose rules hold; portable: all of them at once.",
)
@click.option(
    "--dtype",
    type=click.Choice(["bfloat16", "float16", "float32"]),
    help="Of A and B.  [default: the finetune's]",
)
@click.option("--include", multiple=True, metavar="GLOB", help="Extract only tensors that match; may be repeated.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Leave out tensors that match; may be repeated.")
@click.option("--base-revision", metavar="REV", help="Branch, tag or commit of BASE on the Hub.")
@click.option("--revision", metavar="REV", help="Branch, tag or commit of FINETUNE on the Hub.")
@fetch_option
@click.option(
    "--device", default="cpu", show_default=True, metavar="NAME", help="Where to compute: cpu, cuda, cuda:1, mps."
)
@click.option("--force", is_flag=True, help="Replace an adapter that lies in ADAPTER.")
@click.option("--dry-run", is_flag=True, help="Print the plan and stop: no tensor is read.")
@click.option("--json", "as_json", is_flag=True, help="Print deltarank.json (or the plan) as JSON, alone, on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="No progress and no remarks on stderr.")
@click.pass_context
def extract(
    context: click.Context,
    /,
    rank: str,
    output: Path | None,
    force: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    **job: Any,
) -> None:
    """Extract from FINETUNE, against BASE, the best LoRA of a rank that a server will load.

    Writes ADAPTER in PEFT's format, whole or not at all, and says where the change went: kept, truncated, lost to
    rounding, or in tensors that the server does not take. A run that was stopped goes on where it stopped when the same
    command is given again.
    """
    quieten_the_hub(quiet)
    job["rank"] = _parse_rank(rank)
    if dry_run:
        print_plan(deltarank.plan_extraction(**job), as_json=as_json)
        return
    job |= {"output": output or Path("adapters", default_output(job["finetune"]).name), "force": force}
    _run(job, as_json, quiet, command=shlex.join(["deltarank", *(context.obj or ())]))


def _parse_rank(text: str) -> int | str:
    if text == "auto":
        return text
    try:
        (rank,) = parse_ranks([text])
    except (UsageError, ValueError):
        raise UsageError(
            f"--rank: {text!r} is not one rank, a whole number from 1 up.",
            cure="Give a rank such as 64, or auto.",
            slug="bad-ranks",
        ) from None
    return rank


def _run(job: dict[str, Any], as_json: bool, quiet: bool, *, command: str) -> None:
    from deltarank.report import adapter_picture, drawing_process

    tell = sayer(quiet)
    tell(f"The adapter goes to {job['output']}.")
    with drawing_process():
        with loading():
            from deltarank.cli.progress import watching
        with watching(quiet) as progress:
            adapter = deltarank.extract(**job, command=command, draw=adapter_picture, progress=progress)
    out(adapter.to_json() if as_json else "\n".join(map(one_line, _lines(adapter))))
    tell(f"wrote {adapter.folder}")


def _lines(adapter: ExtractedAdapter) -> list[str]:
    """The sentence, the budget, and by module what is kept."""
    budget = adapter.budget
    kinds = [
        (percent(share), f"{kind_in_words(kind)}, {count(number, 'tensor')}")
        for kind, (number, share) in budget.by_kind().items()
    ]
    modules = [
        (percent(kept), f"{module}, {count(number, 'matrix', 'matrices')}") for module, number, kept in adapter.modules
    ]
    return [
        f"{adapter.sentence}.",
        "",
        *format_table(list(zip(budget.percents, _fates(adapter), strict=True)), align="><", minimum=(12,)),
        *format_table(kinds, align="><", minimum=(16,)),
        "",
        "kept of each module's change, as written:",
        *format_table(modules, align="><", minimum=(12,)),
    ]


def _fates(adapter: ExtractedAdapter) -> list[str]:
    return ["kept", f"truncated at rank {adapter.rank}", "lost to rounding A and B", "left out"]
