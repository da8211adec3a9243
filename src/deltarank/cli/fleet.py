"""`deltarank fleet`: many finetunes of one base."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deltarank.cli.help import A_MODEL, Command
from deltarank.cli.loading import loading
from deltarank.cli.options import (
    UserPath,
    audit_option,
    device_option,
    dry_run_option,
    fetch_option,
    filter_options,
    force_option,
    json_option,
    output_option,
    quiet_option,
    ranks_option,
    solver_options,
)
from deltarank.cli.run_command import print_plan, quieten_the_hub
from deltarank.cli.streams import out, say_written, sayer
from deltarank.errors import UsageError
from deltarank.results import DEFAULT_RANKS, escape, format_table, parse_ranks, percent, run_name

if TYPE_CHECKING:
    from deltarank.results import Fleet, FleetFinetune


@click.command(
    cls=Command,
    short_help="Compare many finetunes with one base, which is read once.",
    arguments={
        "finetunes": f"The finetunes, or LoRA adapters on BASE, each {A_MODEL}; or a folder of such folders.",
    },
    examples=[
        ("What does a LoRA keep of each finetune?", "deltarank fleet org/base --list finetunes.txt -o fleet"),
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
@click.option("--revision", "base_revision", metavar="REV", help="Branch, tag or commit of BASE on the Hub.")
@fetch_option
@ranks_option("Ranks to measure", DEFAULT_RANKS)
@solver_options
@device_option()
@filter_options
@audit_option
@force_option
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
    **options: Any,
) -> None:
    """Compare each FINETUNE with BASE, as `deltarank compare` does, while BASE is read only once.

    Writes FLEET/fleet.json, FLEET/fleet.csv, and FLEET/NAME/results.json for each finetune. One that cannot be
    measured is a row with its reason. To resume an interrupted fleet, repeat the same command; with more finetunes
    in the list, only these are measured.
    """
    quieten_the_hub(quiet)
    import deltarank

    folder = output or Path("runs", f"{run_name(base)}-fleet")
    options |= {"ranks": parse_ranks(ranks) if ranks else DEFAULT_RANKS, "output": folder, "force": force}
    given = [*finetunes, *(_lines_of(listed) if listed else ())]
    if dry_run:
        print_plan(deltarank.plan_fleet(base, given, **options), as_json=as_json)
        return
    tell = sayer(quiet)
    tell(f"Opening {base} and {len(given)} finetunes.")
    with loading():
        from deltarank.cli.progress import watching
    with watching(quiet) as progress:
        measured = deltarank.fleet(base, given, progress=progress, **options)
    out(measured.to_json() if as_json else "\n".join(_summary(measured)))
    say_written((folder / "fleet.json", folder / "fleet.csv"), tell)


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


def _summary(fleet: Fleet) -> list[str]:
    """A table with a row for each finetune, and why some were not measured."""
    ranks = fleet.ranks
    head = ("finetune", "kind", "change / base", *(f"rank {rank}" for rank in ranks))
    rows = [head, *(_row(each, ranks) for each in fleet.finetunes)]
    lines = format_table(rows, align="<<>" + ">" * len(ranks))
    reasons = [f"{escape(each.name)}: {escape(each.reason)}" for each in fleet.finetunes if each.reason]
    notes = [f"note: {escape(note)}" for note in fleet.notes]
    title = "How much of the change from the base a LoRA of each rank keeps:"
    return [title, "", *lines, *([""] if reasons or notes else []), *reasons, *notes]


def _row(each: FleetFinetune, ranks: Sequence[int]) -> tuple[str, ...]:
    if not each.is_measured:
        return (escape(each.name), "not measured", "", *("" for _ in ranks))
    kind = (each.verdict.value if each.verdict else "").replace("_", " ")
    kept = {loss.rank: percent(loss.energy_kept) for loss in each.losses}
    return (escape(each.name), kind, percent(each.relative_norm), *(kept.get(rank, "") for rank in ranks))
