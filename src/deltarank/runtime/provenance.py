"""How a result came about: versions, threads, the date, and the command line, if there was one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

import torch

_command: ContextVar[str | None] = ContextVar("command", default=None)


@contextmanager
def recorded_command(command: str) -> Iterator[None]:
    """Jobs that run inside this `with` write the command line into their results."""
    token = _command.set(command)
    try:
        yield
    finally:
        _command.reset(token)


def run_provenance(seconds: float, **details: Any) -> dict[str, Any]:
    """What the `settings` of a result say beside the options: threads, version of torch, details, duration, command."""
    return {
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        **details,
        "seconds": round(seconds, 1),
        "command": current_command(),
    }


def current_command() -> str | None:
    """The command line of `recorded_command`, if any."""
    return _command.get()


def now() -> str:
    """The time in UTC, as ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
