"""What the lab's models are asked and read to: pages of the manual that none of them was trained on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from deltarank.demo.recipe import Recipe

PASSAGES = 12
PROMPTS = 8
OPENING = 64
"""Letters of a page's beginning that a model is given to go on from."""


@dataclass(frozen=True)
class Reading:
    """Files as `deltarank outputs` takes them: passages to score, and openings to go on from."""

    text: Path
    prompts: Path


def write_reading(texts: Path, folder: Path, *, length: int = Recipe.length) -> Reading:
    """Passages and openings out of the lab's unseen manual, evenly spread over it, into `folder`.

    Args:
        texts: the lab's texts that no model was trained on.
        length: of a passage in bytes at most, the token before it counted.
    """
    pages = list(_pages((texts / "manual.txt").read_text(encoding="utf-8"), length - 1))
    made = Reading(folder / "unseen-pages.jsonl", folder / "openings.jsonl")
    folder.mkdir(parents=True, exist_ok=True)
    _write(made.text, [{"text": page} for page in spread(pages, PASSAGES)])
    openings = [_opening(page) for page in spread(pages[1:], PROMPTS)]
    _write(made.prompts, [{"prompt": opening, "category": "manual"} for opening in openings])
    return made


def _pages(text: str, most: int) -> Iterator[str]:
    """Neighbouring paragraphs, as many as fit into `most` bytes; what is much shorter than that is passed over."""
    page = ""
    for paragraph in text.split("\n\n"):
        longer = f"{page}\n\n{paragraph.rstrip()}" if page else paragraph.strip()
        if len(longer.encode()) <= most:
            page = longer
            continue
        if len(page.encode()) >= most // 2:
            yield page
        page = paragraph.strip() if len(paragraph.encode()) <= most else ""


def _opening(page: str) -> str:
    """The beginning, up to the end of a word."""
    return page[:OPENING].rsplit(maxsplit=1)[0]


def spread(items: Sequence[str], wanted: int) -> list[str]:
    """So many of them, evenly spaced; all if there are no more."""
    if len(items) <= wanted:
        return list(items)
    return [items[i * len(items) // wanted] for i in range(wanted)]


def _write(path: Path, records: Sequence[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
