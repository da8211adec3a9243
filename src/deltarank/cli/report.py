"""`deltarank report`: the page again, or one page over several runs."""

from __future__ import annotations

from pathlib import Path

import click

from deltarank.cli.streams import out, say_written, sayer
from deltarank.errors import OutputError


@click.command(short_help="Make the page again, or one over several runs.")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="OUT",
    help="Folder for the page.  [default: the run itself; for several runs, report/]",
)
@click.option("--force", is_flag=True, help="Replace a report.html that lies in OUT and is not this run's own.")
@click.option("-q", "--quiet", is_flag=True, help="No remarks on stderr.")
def report(runs: tuple[Path, ...], output: Path | None, force: bool, quiet: bool) -> None:
    """Make the page of a RUN again, or one page that sets several side by side.

    RUN is a folder that `deltarank compare` wrote, or its results.json. Nothing is measured. Prints the page's path.
    """
    from deltarank.report import report_process, write_report
    from deltarank.results import Results

    results = [Results.load(run) for run in runs]
    folders = [run if run.is_dir() else run.parent for run in runs]
    target = output or (folders[0] if len(runs) == 1 else Path("report"))
    own = len(runs) == 1 and target.resolve() == folders[0].resolve()
    if not (own or force):
        refuse_to_replace(target)
    with report_process():
        written = write_report(results, target)
    out(str(target / "report.html"))
    say_written(written, sayer(quiet))


def refuse_to_replace(folder: Path) -> None:
    """Raises OutputError if a page lies there."""
    page = folder / "report.html"
    if page.exists():
        raise OutputError(
            f"{page} exists already.",
            cure="Give -o another folder, or --force to replace it.",
            slug="output-exists",
        )
