"""`deltarank explain`: what a message means and what to do about it, or what a term of the glossary means."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

import click

from deltarank.cli.help import DOCUMENTATION, Command
from deltarank.cli.streams import out, width, wrapped
from deltarank.errors import UsageError
from deltarank.system import did_you_mean, near_names

MESSAGES_PAGE = f"{DOCUMENTATION}/messages.md"
GLOSSARY_PAGE = f"{DOCUMENTATION}/glossary.md"

_ENTRY = re.compile(r"\*\*([^*]+)\.\*\*\s")
_MARK = re.compile(r"(`[^`]*`)|\*{1,2}([^*`\s][^*`]*)\*{1,2}|\[([^\]]+)\]\([^)]+\)")
"""Code, which stays; bold or italics; a link."""


def _complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    return [name for name in (*_pages(), *_terms()) if name.startswith(incomplete)]


@click.command(
    cls=Command,
    short_help="Explain a message or a term by its name.",
    arguments={
        "words": "The name at the end of a message, such as `no-servable-rank`, or a term.  [default: list all]"
    },
    examples=[
        ("What does this message mean?", "deltarank explain no-servable-rank"),
        ("What does this term mean?", "deltarank explain noise edge"),
    ],
)
@click.argument("words", nargs=-1, metavar="[NAME]", shell_complete=_complete)
def explain(words: tuple[str, ...]) -> None:
    """Explain the message with this NAME, which is at its end: what it means, why, and what to do.

    NAME may also be a term of the glossary.

    Without NAME, print the names of all messages.
    """
    pages, terms, name = _pages(), _terms(), " ".join(words)
    if not name:
        out("\n".join(pages))
    elif name in pages:
        out(_plain(pages[name], f"{MESSAGES_PAGE}#{name}"))
    elif name.casefold() in terms:
        out(_plain(terms[name.casefold()], GLOSSARY_PAGE))
    else:
        near = near_names(name, [*pages, *terms], cutoff=0.5)
        raise UsageError(
            f"There is no message or term {name!r}.{did_you_mean(near)}",
            cure=f"`deltarank explain` prints the names of messages; the terms are in {GLOSSARY_PAGE}.",
            slug="no-such-message",
        )


def further_help(slug: str) -> str:
    """The last line of a message."""
    return f"More: deltarank explain {slug}, or {MESSAGES_PAGE}#{slug}"


def _plain(markdown: str, page: str) -> str:
    """Paragraphs that fit into the terminal, without asterisks; `page` has the links."""
    text = _MARK.sub(lambda mark: mark[1] or mark[2] or mark[3], markdown.replace("**Cure.**", "Cure:"))
    paragraphs = ["\n".join(wrapped(" ".join(each.split()), width())) for each in text.split("\n\n")]
    return "\n\n".join([*paragraphs, f"More: {page}"])


def _pages() -> dict[str, str]:
    """The sections of docs/messages.md by name, in their order."""
    _, *sections = _text("messages.md").split("\n## ")
    return {title: body.strip() for title, _, body in (each.partition("\n") for each in sections)}


def _terms() -> dict[str, str]:
    """The entries of docs/glossary.md by term, in lower case. An entry "**base, finetune.** ..." has two."""
    entries = _text("glossary.md").split("\n\n")
    found = [(match[1], each.strip()) for each in entries if (match := _ENTRY.match(each))]
    return {name.strip().casefold(): entry for names, entry in found for name in names.split(",")}


def _text(page: str) -> str:
    """The page is packaged with the library; an editable install reads it where it is written."""
    packaged = files("deltarank") / page
    if packaged.is_file():
        return packaged.read_text(encoding="utf-8")
    return (Path(__file__).parents[3] / "docs" / page).read_text(encoding="utf-8")
