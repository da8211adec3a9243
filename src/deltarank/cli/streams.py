"""What the commands print: results on stdout, everything else on stderr."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import click

from deltarank.errors import OutputError
from deltarank.results import escape

NARROWEST, WIDEST = 60, 120


def printable(text: str) -> str:
    """`text` with everything escaped but its newlines, because it may quote names from a checkpoint."""
    return "\n".join(escape(line) for line in text.split("\n"))


def wrapped(sentence: str, columns: int) -> list[str]:
    """The lines of a sentence, escaped; a number and its percent sign stay together."""
    lines = textwrap.wrap(escape(sentence).replace(" %", "\u00a0%"), columns, break_on_hyphens=False)
    return [line.replace("\u00a0", " ") for line in lines]


def out(text: str) -> None:
    """Print a result on stdout. Characters that its encoding lacks are replaced.

    Raises:
        OutputError: stdout is a file on a full disk.
        BrokenPipeError: the reader of a pipe has ended.
    """
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"  # None: closed by the shell
    try:
        click.echo(text.rstrip("\n").encode(encoding, "replace").decode(encoding))
    except BrokenPipeError:
        raise
    except OSError as error:
        forget_stdout()
        raise OutputError(
            f"Cannot write to standard output: {error.strerror or error}.",
            cure="Redirect it to a disk with free space. The files that were named before this message are complete.",
            slug="output-unwritable",
        ) from None


def forget_stdout() -> None:
    """Redirect a stdout that failed to the null device, so that Python does not report it again at exit."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # a stdout without a file behind it
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def say(sentence: str) -> None:
    """Print a note on stderr."""
    click.echo(escape(sentence), err=True)


def sayer(quiet: bool) -> Callable[[str], None]:
    """`say`, or a function that prints nothing, under `--quiet`."""
    return _nothing if quiet else say


def _nothing(sentence: str) -> None:
    pass


def complain(message: str) -> None:
    """Print why a job failed on stderr, also under `--quiet`."""
    click.echo(f"deltarank: {message}", err=True)


def say_written(paths: tuple[Path, ...], tell: Callable[[str], None]) -> None:
    """Name the files that were written, the report first, because most people want to open it."""
    for path in sorted(paths, key=lambda path: (path.suffix != ".html", path.name)):
        tell(f"wrote {path}")


def in_colour() -> bool:
    """Whether stdout gets colours: on a terminal only, and not under NO_COLOR (no-color.org)."""
    return sys.stdout is not None and sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def width() -> int:
    """The number of columns for a table on stdout."""
    return min(max(shutil.get_terminal_size((100, 24)).columns, NARROWEST), WIDEST)
