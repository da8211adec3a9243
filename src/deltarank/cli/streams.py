"""What the doorway prints, and where: results on stdout, everything else on stderr."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import click

from deltarank.errors import OutputError

NARROWEST, WIDEST = 60, 120


def printable(text: str) -> str:
    """Text that may quote names from a checkpoint: nothing in it moves the cursor or changes a colour."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def one_line(text: str) -> str:
    """As `printable`, and no new line either: a name cannot forge a line of its own."""
    return printable(text).replace("\n", "\\n")


def out(text: str) -> None:
    """A result, on stdout. What its encoding lacks is replaced: a table is never lost to one sign.

    Raises:
        OutputError: stdout is a file on a full disk.
        BrokenPipeError: nobody reads it any more.
    """
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"  # None: closed by the shell
    try:
        click.echo(text.rstrip("\n").encode(encoding, "replace").decode(encoding))
    except BrokenPipeError:
        raise
    except OSError as error:
        forget_stdout()
        raise OutputError(
            f"cannot write to standard output: {error.strerror or error}.",
            cure="Send it to a disk with room; files that were named before this message are whole.",
            slug="output-unwritable",
        ) from None


def forget_stdout() -> None:
    """Nothing more is written to a stdout that failed, and Python does not complain about it at exit."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # a stdout without a file behind it
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def say(sentence: str) -> None:
    """A remark on the way, on stderr."""
    click.echo(one_line(sentence), err=True)


def sayer(quiet: bool) -> Callable[[str], None]:
    """`say`, or nothing under `--quiet`."""
    return _nothing if quiet else say


def _nothing(sentence: str) -> None:
    pass


def complain(message: str) -> None:
    """Why a job failed, on stderr, also under `--quiet`."""
    click.echo(f"deltarank: {message}", err=True)


def say_written(paths: tuple[Path, ...], tell: Callable[[str], None]) -> None:
    """Names what was written, the page first: it is what most people want to open."""
    for path in sorted(paths, key=lambda path: (path.suffix != ".html", path.name)):
        tell(f"wrote {path}")


def in_colour() -> bool:
    """Colour on stdout: only on a terminal, and not under NO_COLOR (no-color.org)."""
    return sys.stdout is not None and sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def width() -> int:
    """Columns for a table on stdout."""
    return min(max(shutil.get_terminal_size((100, 24)).columns, NARROWEST), WIDEST)
