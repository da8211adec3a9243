"""`deltarank which-base`: which of several candidates a finetune came from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from deltarank.cli.help import A_MODEL, Command
from deltarank.cli.loading import loading
from deltarank.cli.options import (
    device_option,
    filter_options,
    json_option,
    number_option,
    quiet_option,
    revision_option,
)
from deltarank.cli.run_command import quieten_the_hub
from deltarank.cli.streams import out, width, wrapped
from deltarank.results import escape, format_table, percent
from deltarank.system import Default

if TYPE_CHECKING:
    from deltarank.results import BaseChoice, CandidateBase


@click.command(
    "which-base",
    cls=Command,
    short_help="Find the base that a finetune came from.",
    arguments={
        "finetune": f"The finetuned model: {A_MODEL}.",
        "candidates": "The models that may be the base, named likewise; at least one.",
    },
    examples=[
        ("Base or instruct model?", "deltarank which-base org/finetune org/base org/instruct"),
    ],
)
@click.argument("finetune")
@click.argument("candidates", nargs=-1, required=True, metavar="CANDIDATE...")
@click.option(
    "--matrices",
    type=click.IntRange(min=1),
    default=Default.SAMPLED_MATRICES,
    show_default=True,
    metavar="N",
    help="Matrices to read; four times as many if the answer is not clear.",
)
@number_option("--seed", "Seed of the random sample.", Default.SEED)
@revision_option
@click.option(
    "--download",
    "fetch",
    flag_value="download",
    default=Default.SAMPLE_FETCH,
    help="Download Hub models that are not in the cache.  [default: stream the sample only]",
)
@filter_options
@device_option()
@json_option("all figures")
@quiet_option
def which_base(finetune: str, candidates: tuple[str, ...], as_json: bool, quiet: bool, **options: Any) -> None:
    """Find which CANDIDATE is the base that FINETUNE was trained from.

    Reads the same few random matrices of each, and compares the size of the difference with the size of the weights.
    A finetune differs from its base by a few per cent, from an unrelated model by about 141 %. Nothing is written.
    The revision of a candidate is given as org/name@revision.
    """
    quieten_the_hub(quiet)
    import deltarank

    with loading():
        from deltarank.cli.progress import watching

    with watching(quiet) as progress:
        choice = deltarank.which_base(finetune, candidates, progress=progress, **options)
    out(choice.to_json() if as_json else "\n".join(_lines(choice, width())))


def _lines(choice: BaseChoice, columns: int) -> list[str]:
    nearest_first = sorted(choice.candidates, key=lambda each: each.distance)
    rows = [("candidate", "change / weights", "in each matrix"), *map(_row, nearest_first)]
    table = [f"finetune: {choice.finetune.ref}", "", *format_table(rows, align="<><", indent=2), ""]
    return [*map(escape, table), *wrapped(choice.sentence, columns)]


def _row(candidate: CandidateBase) -> tuple[str, str, str]:
    ref = candidate.reference.ref
    if candidate.relative_norm is None:
        return ref, "", f"not compared: {candidate.reason or 'its sample contains no finite numbers'}"
    norms = sorted(candidate.norms.values())
    return ref, percent(candidate.relative_norm), f"{percent(norms[0])} to {percent(norms[-1])}" if norms else ""
