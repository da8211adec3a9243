"""The options of `endpoints` about the models that may be served, and what they become in the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from deltarank.cli.loading import loading
from deltarank.cli.options import device_option, input_options, ranks_option, server_option
from deltarank.results import (
    SERVABLE_RANKS,
    Identification,
    escape,
    figure,
    format_table,
    parse_ranks,
    percent,
    power_of_ten,
)

if TYPE_CHECKING:
    from deltarank.runtime import ProgressListener

_Function = TypeVar("_Function", bound=Callable[..., Any])


def weights_options(function: _Function) -> _Function:
    """--weights, and what goes with it: named as in `outputs`."""
    options = (
        click.option(
            "--weights",
            nargs=2,
            metavar="BASE FINETUNE",
            help="Find out which of these and of their like each endpoint serves: folders or Hub ids.",
        ),
        ranks_option("With --weights: ranks r of the candidates base + rank-r delta", SERVABLE_RANKS),
        click.option(
            "--adapter",
            "adapters",
            multiple=True,
            metavar="DIR",
            help="With --weights: candidate base + adapter; repeatable.",
        ),
        server_option("Apply adapters as this server does.", None),
        click.option(
            "--yardstick",
            "yardsticks",
            multiple=True,
            metavar="LIST",
            help="With --weights: candidates: the finetune quantised to q8_0, q4_0, nf4, int8 or fp8.",
        ),
        device_option("With --weights: where models run"),
        click.option(
            "--dtype",
            type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
            help="With --weights: precision in which models run.  [default: auto, as in outputs]",
        ),
        click.option("--trust-remote-code", is_flag=True, help="Run Python code that comes with a checkpoint."),
        input_options,
    )
    for option in reversed(options):
        function = option(function)
    return function


def read_weights_options(job: Mapping[str, Any]) -> dict[str, Any]:
    """As the library takes them. Without --weights, the defaults of its options are not passed on."""
    split = tuple(word for text in job["yardsticks"] for word in text.replace(",", " ").split())
    found = {"ranks": parse_ranks(job["ranks"]) if job["ranks"] else None, "yardsticks": split}
    if job["weights"] is None:
        source = click.get_current_context().get_parameter_source
        defaults = ("device", "fetch")
        given = [name for name in defaults if str(source(name)).endswith("COMMANDLINE")]
        found |= {name: None for name in defaults if name not in given}
    return found


@contextmanager
def watching_weights(job: Mapping[str, Any], quiet: bool) -> Iterator[ProgressListener | None]:
    """A progress bar while the models are prepared; None where there are none."""
    if job["weights"] is None:
        yield None
        return
    with loading():
        from deltarank.cli.progress import watching
    with watching(quiet) as progress:
        yield progress


def identification_table(found: Identification, letter: str) -> Iterator[str]:
    """A row for each candidate."""
    if letter:
        yield f"{letter}:"
    has_lists = any(each.kld is not None for each in found.candidates)
    lists = ["KLD of lists"] if has_lists else []
    heads = ["candidate", "log-likelihood", "posterior", "e-value against it", *lists, ""]
    rows = [
        (
            escape(each.name),
            f"{each.log_likelihood:,.1f}",
            percent(each.posterior),
            power_of_ten(each.log_e_value),
            *([figure(each.kld, unknown="-")] if has_lists else []),
            "excluded" if each.excluded else "left",
        )
        for each in found.candidates
    ]
    yield from format_table([tuple(heads), *rows], align="<>>>" + (">" if has_lists else "") + "<")
