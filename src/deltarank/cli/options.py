"""Options that several commands share, each declared once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from deltarank.servers import server_names
from deltarank.system import Default, expand_home

_Function = TypeVar("_Function", bound=Callable[..., Any])
_FETCH_MODES = {None: "auto", True: "stream", False: "download"}


def _fetch_mode(context: click.Context, parameter: click.Parameter, value: bool | None) -> str:
    return _FETCH_MODES[value]


class UserPath(click.Path):
    """A path on this machine; a leading `~` is the home folder, also after `--option=`, where no shell expands it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(path_type=Path, **options)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(expand_home(value), param, ctx)


fetch_option = click.option(
    "--stream/--download",
    "fetch",
    default=None,
    callback=_fetch_mode,
    help="For Hub models that are not in the cache: stream without saving, or download first.  [default: download if "
    "at least 5 GB would remain free]",
)

base_revision_option = click.option("--base-revision", metavar="REV", help="Branch, tag or commit of BASE on the Hub.")
revision_option = click.option("--revision", metavar="REV", help="Branch, tag or commit of FINETUNE on the Hub.")
force_option = click.option("--force", is_flag=True, help="Replace what another run left in the output folder.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Print the plan and stop; no tensor is read.")
quiet_option = click.option("-q", "--quiet", is_flag=True, help="Print no progress and no notes on stderr.")


def input_options(function: _Function) -> _Function:
    """BASE and FINETUNE with their revisions, and how they are fetched."""
    return base_revision_option(revision_option(fetch_option(function)))


def filter_options(function: _Function) -> _Function:
    """Which tensors: --include and --exclude."""
    include = click.option("--include", multiple=True, metavar="GLOB", help="Use only matching tensors; repeatable.")
    exclude = click.option("--exclude", multiple=True, metavar="GLOB", help="Leave out matching tensors; repeatable.")
    return include(exclude(function))


def device_option(does: str = "Where to compute") -> Callable[[_Function], _Function]:
    return click.option(
        "--device", default=Default.DEVICE, show_default=True, metavar="NAME", help=f"{does}: cpu, cuda, cuda:1, mps."
    )


def solver_options(function: _Function) -> _Function:
    """How the losses are computed: --solver, --tolerance and --dtype."""
    solver = click.option(
        "--solver",
        type=click.Choice(["auto", "exact", "krylov"]),
        default=Default.SOLVER,
        show_default=True,
        help="exact: all singular values; krylov: the largest ones, to --tolerance; auto: the faster one.",
    )
    tolerance = click.option(
        "--tolerance",
        type=float,
        default=Default.TOLERANCE,
        show_default=True,
        metavar="X",
        help="Largest error of krylov, in cosine distance.",
    )
    dtype = click.option(
        "--dtype",
        type=click.Choice(["float32", "float64"]),
        default=Default.COMPUTE_DTYPE,
        show_default=True,
        help="Precision of the computation.",
    )
    return solver(tolerance(dtype(function)))


audit_option = click.option(
    "--audit",
    type=click.IntRange(min=0),
    default=Default.AUDIT,
    show_default=True,
    metavar="N",
    help="Re-measure N random matrices with a full float64 SVD.",
)


def output_option(metavar: str, does: str, default: str) -> Callable[[_Function], _Function]:
    return click.option(
        "-o",
        "--output",
        type=UserPath(file_okay=False),
        metavar=metavar,
        help=f"{does}.  [default: {default}]",
    )


def ranks_option(does: str, default: tuple[int, ...]) -> Callable[[_Function], _Function]:
    shown = ",".join(map(str, default))
    return click.option(
        "--ranks", multiple=True, metavar="LIST", help=f"{does}, such as 16,64; repeatable.  [default: {shown}]"
    )


def server_option(does: str, default: str | None) -> Callable[[_Function], _Function]:
    """--server; a `default` of None means PEFT."""
    text = does if default else f"{does}  [default: as PEFT does]"
    return click.option(
        "--server", type=click.Choice(server_names()), default=default, show_default=default is not None, help=text
    )


def number_option(name: str, does: str, default: int) -> Callable[[_Function], _Function]:
    return click.option(name, type=int, default=default, show_default=True, metavar="N", help=does)


no_report_option = click.option("--no-report", is_flag=True, help="Write results.json only, no page and no pictures.")
csv_option = click.option(
    "--csv", "as_csv", is_flag=True, help="Print a row per matrix and rank as CSV on stdout, and nothing else."
)


def json_option(what: str) -> Callable[[_Function], _Function]:
    return click.option("--json", "as_json", is_flag=True, help=f"Print {what} as JSON on stdout, and nothing else.")
