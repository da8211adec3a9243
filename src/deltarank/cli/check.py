"""`--check`, for scripts and CI: the exit code says whether the result is as it should be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import click

from deltarank.cli.streams import complain
from deltarank.results import (
    EndpointResults,
    EndpointVerdictKind,
    FitKind,
    LiveVerdict,
    MergeCheck,
    MergeKind,
    Results,
    VerdictKind,
    Verification,
    count,
    escape,
    figure,
    listing,
)

CHECK_FAILED = 3

_RIGHT = (FitKind.OPTIMAL, MergeKind.EXACT, MergeKind.ROUNDING)
_NO_FINETUNE = (VerdictKind.UNRELATED, VerdictKind.UNKNOWN)


def check_option(unless: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option("--check", is_flag=True, help=f"Exit with code {CHECK_FAILED} unless {unless}.")


def check_verification(found: Verification | MergeCheck) -> None:
    """Raises Exit with code 3 unless the adapter is optimal, or held by the merge and nothing else is.

    Where a running server was asked, it counts instead whether that applies the adapter.
    """
    if isinstance(found, Verification) and found.live is not None:
        if found.live.verdict is not LiveVerdict.ADAPTER:
            _fail(f"the server's verdict is {found.live.verdict.value!r}")
        return
    if found.kind not in _RIGHT:
        _fail(f"the verdict is {found.kind.value!r}")


def check_results(results: Results, max_error: float | None) -> None:
    """Raises Exit with code 3 unless all matrices of a finetune were measured, and lose at most `max_error`.

    Args:
        max_error: the largest relative error ||D - D_r|| / ||D|| at the highest rank of the run; None: any.
    """
    if results.verdict.kind in _NO_FINETUNE:
        _fail(f"the verdict is {results.verdict.kind.value!r}")
    failed = [escape(matrix.name) for matrix in results.matrices if not matrix.has_losses]
    if failed:
        _fail(f"{count(len(failed), 'matrix', 'matrices')} could not be measured: {listing(failed, most=3)}")
    loss = results.totals.losses[-1]
    if max_error is not None and loss.relative_error > max_error:
        _fail(f"the relative error at rank {loss.rank} is {figure(loss.relative_error)}, more than {max_error:g}")


def check_endpoints(found: EndpointResults) -> None:
    """Raises Exit with code 3 unless the endpoints answer alike."""
    if found.verdict.kind is not EndpointVerdictKind.SAME:
        _fail(f"the verdict is {found.verdict.kind.value!r}")


def _fail(reason: str) -> NoReturn:
    complain(f"Check failed: {reason}.")
    raise click.exceptions.Exit(CHECK_FAILED)
