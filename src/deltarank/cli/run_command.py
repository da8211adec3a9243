"""What the verbs that write a run have in common: where it goes, its plan, and the way to its page."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from deltarank.cli.loading import loading
from deltarank.cli.streams import in_colour, one_line, out, say_written, sayer, width
from deltarank.results import Results


@dataclass(frozen=True)
class Manner:
    """How to go about it and what to print; what is measured stands in the job."""

    output: Path
    force: bool
    as_json: bool
    quiet: bool
    command: str


class Plan(Protocol):
    """What a dry run shows."""

    def lines(self) -> list[str]: ...

    def to_plain(self) -> dict[str, Any]: ...


def quieten_the_hub(quiet: bool) -> None:
    """To be called before huggingface_hub is imported: it reads this then."""
    if quiet:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def print_plan(plan: Plan, *, as_json: bool) -> None:
    out(json.dumps(plan.to_plain(), indent=1) if as_json else "\n".join(map(one_line, plan.lines())))


def run(measure: Callable[..., Results], job: dict[str, Any], manner: Manner, *, remark: str = "") -> None:
    """Measures into the run's folder, and draws the page. `remark` is said beforehand.

    `measure` looks the library's function up when it is called: that loads torch, and the first line should not wait.
    """
    from deltarank.report import report_process, write_report

    tell = sayer(manner.quiet)
    tell(f"Results go to {manner.output}.{remark}")
    with report_process():
        with loading():
            from deltarank.cli.progress import watching
        with watching(manner.quiet) as progress:
            from deltarank.runtime import recorded_command

            with recorded_command(manner.command):
                results = measure(**job, output=manner.output, force=manner.force, progress=progress)
        try:
            written = write_report([results], manner.output)
        finally:  # a page that failed takes no hour's work with it
            print_results(results, manner.as_json)
    say_written((manner.output / "results.json", *written), tell)


def print_results(results: Results, as_json: bool) -> None:
    """The results on stdout: for a reader, or whole for a program."""
    if as_json:
        out(results.to_json())
        return
    from deltarank.report import terminal_summary

    out(terminal_summary(results, colour=in_colour(), width=width()))


def default_output(finetune: str) -> Path:
    """`runs/` and the last word of the reference, in letters that every file system takes."""
    local = Path(finetune)
    if local.exists():
        name = local.resolve().name.removesuffix(".safetensors")
    else:
        name = finetune.removeprefix("hf://").split("@")[0].rstrip("/").rsplit("/", 1)[-1]
    return Path("runs", re.sub(r"[^\w.-]+", "-", name).strip(".-") or "finetune")
