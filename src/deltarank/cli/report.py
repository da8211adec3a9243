"""`deltarank report`: write the report of a run again, or one report on several runs."""

from __future__ import annotations

from pathlib import Path

import click

from deltarank.cli.help import Command
from deltarank.cli.options import UserPath, output_option, quiet_option
from deltarank.cli.streams import in_colour, out, say_written, sayer, width
from deltarank.errors import OutputError
from deltarank.results import Fleet, Results, common_headline_rank


@click.command(
    cls=Command,
    short_help="Write the report of a run again, or one on several runs.",
    arguments={
        "runs": "Folders that `deltarank compare`, `outputs`, `endpoints` or `fleet` wrote, or a run's results.json."
    },
    examples=[
        ("Make the page of a run again:", "deltarank report runs/mine"),
        ("Three finetunes side by side:", "deltarank report runs/one runs/two runs/three -o side-by-side"),
    ],
)
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=UserPath())
@output_option("OUT", "Folder for the report", "the run itself; for several runs, report/")
@click.option("--force", is_flag=True, help="Replace a report.html in OUT that is not this run's own.")
@quiet_option
def report(runs: tuple[Path, ...], output: Path | None, force: bool, quiet: bool) -> None:
    """Write the report of a RUN again, or one report that shows several runs side by side.

    Nothing is measured; a run of `endpoints` is analysed again from its exchanges, offline. Prints the path of the
    report and, with several runs, their tables side by side.
    """
    if len(runs) == 1 and output is None and (runs[0] / str(Fleet.file_name)).is_file():
        _report_fleet(runs[0], quiet)
        return
    from deltarank.report import report_process, runs_side_by_side, write_report

    if len(runs) == 1 and _is_of_endpoints(runs[0]):
        _report_endpoints(runs[0], output, quiet)
        return
    results = [Results.load(run) for run in runs]
    folders = [run if run.is_dir() else run.parent for run in runs]
    target = output or (folders[0] if len(runs) == 1 else Path("report"))
    is_own = len(runs) == 1 and target.resolve() == folders[0].resolve()
    if not (is_own or force):
        refuse_to_replace(target)
    with report_process():
        written = write_report(results, target)
    out(str(target / "report.html"))
    if len(results) > 1:
        out("\n" + runs_side_by_side(results, rank=common_headline_rank(results), width=width()))
    say_written(written, sayer(quiet))


def _is_of_endpoints(run: Path) -> bool:
    """Also one that was interrupted, and has no results yet."""
    return ((run if run.is_dir() else run.parent) / "exchanges.jsonl").is_file()


def _report_endpoints(run: Path, output: Path | None, quiet: bool) -> None:
    """Analyses the stored exchanges again, without a network."""
    from deltarank.cli.endpoints import endpoint_lines
    from deltarank.jobs.endpoints import analyse_exchanges
    from deltarank.report import write_endpoints_report

    folder = run if run.is_dir() else run.parent
    found = analyse_exchanges(folder)
    out("\n".join(endpoint_lines(found, width())))
    say_written((folder / "results.json", *write_endpoints_report(found, output or folder)), sayer(quiet))


def _report_fleet(folder: Path, quiet: bool) -> None:
    from deltarank.report import fleet_summary, write_fleet_page

    fleet = Fleet.load(folder)
    page = write_fleet_page(fleet, folder)
    out(str(page) + "\n\n" + fleet_summary(fleet, colour=in_colour(), width=width()))
    say_written((page,), sayer(quiet))


def refuse_to_replace(folder: Path) -> None:
    """Raises OutputError if the folder contains a report."""
    page = folder / "report.html"
    if page.exists():
        raise OutputError(
            f"{page} already exists.",
            cure="Choose another folder with -o, or use --force to replace it.",
            slug="output-exists",
        )
