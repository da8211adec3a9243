"""The command line that this process was started with, for the record of what it makes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_command: ContextVar[str | None] = ContextVar("command", default=None)


@contextmanager
def recorded_command(command: str) -> Iterator[None]:
    """Jobs that run inside this `with` write the command line into their results."""
    token = _command.set(command)
    try:
        yield
    finally:
        _command.reset(token)


def current_command() -> str | None:
    """The command line of `recorded_command`; None where the library is used without one."""
    return _command.get()
