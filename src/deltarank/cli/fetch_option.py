"""`--stream` and `--download`: what becomes of a model that is not in the Hub's cache."""

from __future__ import annotations

import click

_WAYS = {None: "auto", True: "stream", False: "download"}


def _way(context: click.Context, parameter: click.Parameter, value: bool | None) -> str:
    return _WAYS[value]


fetch_option = click.option(
    "--stream/--download",
    "fetch",
    default=None,
    callback=_way,
    help="Hub models that are not in the cache: read by parts, keeping nothing, or download into the cache first.  "
    "[default: download if the disk then keeps 5 GB free]",
)
