"""What commands that write a run have in common: the output folder, the plan of a dry run, the report."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from deltarank.cli.loading import loading
from deltarank.cli.streams import in_colour, out, say, say_written, sayer, width
from deltarank.errors import OutputError
from deltarank.results import Results, escape, run_name


@dataclass(frozen=True)
class RunRequest:
    """Where a run is written and what is printed; the options of the job say what is measured.

    no_report   no page and no pictures are written
    as_csv      print `Results.rows()`, instead of the table and the verdict
    """

    output: Path
    force: bool
    as_json: bool
    quiet: bool
    no_report: bool = False
    as_csv: bool = False


class Printable(Protocol):
    """The plan of a dry run."""

    def lines(self) -> list[str]: ...

    def to_plain(self) -> dict[str, Any]: ...


def quieten_the_hub(quiet: bool) -> None:
    """Call this before huggingface_hub is imported, which reads the variable then."""
    if quiet:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def print_plan(
    make_plan: Callable[..., Printable],
    options: dict[str, Any],
    *,
    as_json: bool,
    replaceable: tuple[str, ...] = ("run-differs",),
) -> None:
    """Prints what a command with these options would do. A plan is also printed where --force would replace something.

    Args:
        replaceable: slugs of errors about the output folder that may not occur with --force.

    Raises:
        OutputError: the output folder cannot be used.
    """
    try:
        plan, stop = make_plan(**options), None
    except OutputError as error:
        if error.slug not in replaceable:
            raise
        plan, stop = make_plan(**{**options, "force": True}), error
    out(json.dumps(plan.to_plain(), indent=1) if as_json else "\n".join(map(escape, plan.lines())))
    if stop is not None:
        say(f"Note: the command would stop, and this is its plan with --force. {stop.message} {stop.cure}")


def run(
    measure: Callable[..., Results],
    options: dict[str, Any],
    request: RunRequest,
    *,
    before_printing: Callable[[Results], tuple[Path, ...]] = lambda results: (),
) -> Results:
    """Measures into the folder of the run, and writes the report.

    Args:
        measure: should look up the library's function only when it is called: that imports torch.
        before_printing: writes more files from the results, and returns their paths. The reader of a pipe may end when
            the results are printed, and the command with it.
    """
    from deltarank.report import report_process, write_report

    tell = sayer(request.quiet)
    with nullcontext() if request.no_report else report_process():
        with loading():
            from deltarank.cli.progress import watching
        results = None
        try:
            with watching(request.quiet) as progress:
                results = measure(**options, output=request.output, force=request.force, progress=progress)
                progress.stage("the report")
                is_wanted = not (request.no_report or has_current_report(request.output))
                written = write_report([results], request.output) if is_wanted else ()
                written = (*written, *before_printing(results))
        finally:  # if the report fails, the results are printed all the same
            if results is not None:
                print_results(results, request)
    say_written((request.output / "results.json", *written), tell)
    return results


def has_current_report(folder: Path) -> bool:
    """Whether the page was written after the results: those of a finished run are not written again."""
    page, results = folder / "report.html", folder / "results.json"
    return page.is_file() and page.stat().st_mtime_ns > results.stat().st_mtime_ns


def print_results(results: Results, request: RunRequest) -> None:
    """Prints the results on stdout, as a table with a verdict, as JSON or as CSV."""
    if request.as_json or request.as_csv:
        out(results.to_json() if request.as_json else results.to_csv())
        return
    from deltarank.report import terminal_summary

    out(terminal_summary(results, colour=in_colour(), width=width()))


def default_output(finetune: str) -> Path:
    """`runs/` and a name for the finetune."""
    return Path("runs", run_name(finetune))
