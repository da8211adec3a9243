"""`deltarank compare --base-candidates A B C FINETUNE`: which of them is the base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from deltarank.cli.loading import loading
from deltarank.cli.streams import one_line, out
from deltarank.errors import UsageError
from deltarank.results import format_table

if TYPE_CHECKING:
    from deltarank.jobs.which_base import BaseChoice

TAKEN = {"refs", "base_candidates", "revision", "fetch", "include", "exclude", "device", "as_json", "quiet"}
"""Parameters of `compare` that mean something here."""


def refuse_others(context: click.Context) -> None:
    """Raises UsageError where an option of a measurement was given: none is made."""
    given = [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name not in TAKEN
        and context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
    ]
    if given:
        raise UsageError(
            f"--base-candidates only looks for the base: {', '.join(given)} means nothing beside it.",
            cure="Leave it out; then compare the finetune with the base that was found. A candidate's revision is "
            "written org/name@revision.",
            slug="bases-only",
        )


def find_base(refs: Sequence[str], job: Mapping[str, Any], *, as_json: bool, quiet: bool) -> None:
    """Prints the table and the sentence, or all of it as JSON."""
    import deltarank

    with loading():
        from deltarank.cli.progress import watching

    kept = {name: job[name] for name in ("revision", "include", "exclude", "device")}
    fetch = "stream" if job["fetch"] == "auto" else job["fetch"]  # a sample: nobody wants three models on the disk
    with watching(quiet) as progress:
        choice = deltarank.which_base(refs[:-1], refs[-1], fetch=fetch, progress=progress, **kept)
    out(choice.to_json() if as_json else "\n".join(map(one_line, lines(choice))))


def lines(choice: BaseChoice) -> list[str]:
    from deltarank.jobs.which_base import table

    rows = [("candidate", "change / weights", "in single matrices"), *table(choice)]
    return [f"finetune: {choice.finetune.ref}", "", *format_table(rows, align="<><", indent=2), "", choice.sentence]
