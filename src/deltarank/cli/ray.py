"""`--ray`: the commands that run their matrices on a Ray cluster."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar, cast

import click

from deltarank.cli.streams import sayer

_Function = TypeVar("_Function", bound=Callable[..., Any])

_HERE = ""
"""The value of the option without an address."""


def ray_option(function: _Function) -> _Function:
    """Adds --ray. The command itself does not see it: whatever pools its jobs ask for are those of the cluster."""
    option = click.option(
        "--ray",
        "address",
        is_flag=False,
        flag_value=_HERE,
        default=None,
        metavar="[ADDRESS]",
        help="Run the matrices on the Ray cluster at ADDRESS, such as head:6379 or auto; without an address, on one "
        "that is started here. Write it after the other arguments, or as --ray=ADDRESS.",
    )

    @functools.wraps(function)
    def with_pools(*args: Any, address: str | None, **options: Any) -> Any:
        with _pools(address, options):
            return function(*args, **options)

    return cast(_Function, option(with_pools))


def _pools(address: str | None, options: dict[str, Any]) -> AbstractContextManager[None]:
    """Those of the cluster; those of this process without --ray, or for a plan, which reads no tensor."""
    if address is None or options.get("dry_run"):
        return nullcontext()
    from deltarank.ray_pool import on_ray

    tell = sayer(options.get("quiet", False))
    tell(f"Connecting to the Ray cluster {address}." if address else "Starting Ray on this machine.")
    return on_ray(address or None)
