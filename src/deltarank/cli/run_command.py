"""What commands that write a run have in common: the output folder, the plan of a dry run, the report."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from deltarank.cli.loading import loading
from deltarank.cli.streams import in_colour, out, say_written, sayer, width
from deltarank.results import Results, escape


@dataclass(frozen=True)
class RunRequest:
    """Where a run is written and what is printed; the options of the job say what is measured."""

    output: Path
    force: bool
    as_json: bool
    quiet: bool


class Printable(Protocol):
    """The plan of a dry run."""

    def lines(self) -> list[str]: ...

    def to_plain(self) -> dict[str, Any]: ...


def quieten_the_hub(quiet: bool) -> None:
    """Call this before huggingface_hub is imported, which reads the variable then."""
    if quiet:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def print_plan(plan: Printable, *, as_json: bool) -> None:
    out(json.dumps(plan.to_plain(), indent=1) if as_json else "\n".join(map(escape, plan.lines())))


def run(measure: Callable[..., Results], options: dict[str, Any], request: RunRequest, *, note: str = "") -> None:
    """Measures into the folder of the run, and writes the report. `note` is printed first.

    `measure` should look up the library's function only when it is called: that imports torch, and the first line
    should not wait for it.
    """
    from deltarank.report import report_process, write_report

    tell = sayer(request.quiet)
    tell(f"Writing results to {request.output}.{note}")
    with report_process():
        with loading():
            from deltarank.cli.progress import watching
        with watching(request.quiet) as progress:
            results = measure(**options, output=request.output, force=request.force, progress=progress)
        try:
            written = write_report([results], request.output)
        finally:  # if the report fails, the results are printed all the same
            print_results(results, request.as_json)
    say_written((request.output / "results.json", *written), tell)


def print_results(results: Results, as_json: bool) -> None:
    """Prints the results on stdout, as a table with a verdict or as JSON."""
    if as_json:
        out(results.to_json())
        return
    from deltarank.report import terminal_summary

    out(terminal_summary(results, colour=in_colour(), width=width()))


def default_output(finetune: str) -> Path:
    """`runs/` and the last part of the reference, in letters that every file system accepts."""
    local = Path(finetune)
    if local.exists():
        name = local.resolve().name.removesuffix(".safetensors")
    else:
        name = finetune.removeprefix("hf://").split("@")[0].rstrip("/").rsplit("/", 1)[-1]
    return Path("runs", re.sub(r"[^\w.-]+", "-", name).strip(".-") or "finetune")
