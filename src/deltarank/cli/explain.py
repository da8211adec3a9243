"""`deltarank explain`: what a message means and what to do about it."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import click

from deltarank.cli.help import DOCUMENTATION, Command
from deltarank.cli.streams import out
from deltarank.errors import UsageError
from deltarank.system import did_you_mean, near_names

MESSAGES_PAGE = f"{DOCUMENTATION}/messages.md"


def _complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    return [name for name in _pages() if name.startswith(incomplete)]


@click.command(
    cls=Command,
    short_help="Explain a message by its name.",
    arguments={"slug": "The name at the end of a message, such as `no-servable-rank`.  [default: list all names]"},
    examples=[
        ("What does this message mean?", "deltarank explain no-servable-rank"),
    ],
)
@click.argument("slug", required=False, metavar="[NAME]", shell_complete=_complete)
def explain(slug: str | None) -> None:
    """Explain the message with this NAME, which is at its end: what it means, why, and what to do.

    Without NAME, print the names of all messages.
    """
    pages = _pages()
    if slug is None:
        out("\n".join(pages))
    elif slug in pages:
        out(pages[slug])
    else:
        near = near_names(slug, pages, cutoff=0.5)
        raise UsageError(
            f"There is no message {slug!r}.{did_you_mean(near)}",
            cure="`deltarank explain` prints all names.",
            slug="no-such-message",
        )


def further_help(slug: str) -> str:
    """The last line of a message."""
    return f"More: deltarank explain {slug}, or {MESSAGES_PAGE}#{slug}"


def _pages() -> dict[str, str]:
    """The sections of docs/messages.md by name, in their order."""
    _, *sections = _text().split("\n## ")
    return {title: body.strip() for title, _, body in (each.partition("\n") for each in sections)}


def _text() -> str:
    """The page is packaged with the library; an editable install reads it where it is written."""
    packaged = files("deltarank") / "messages.md"
    if packaged.is_file():
        return packaged.read_text(encoding="utf-8")
    return (Path(__file__).parents[3] / "docs" / "messages.md").read_text(encoding="utf-8")
