"""The text and the prompts of the demo's `outputs`, and the text of its calibration: held-out help pages."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from deltarank.demo.recipe import Recipe

PASSAGES = 12
PROMPTS = 8
OPENING = 64
"""Characters of the beginning of a page that are a prompt."""


@dataclass(frozen=True)
class Reading:
    """Input files of `deltarank outputs`: passages to score, and prompts to continue; and other passages to fit to."""

    text: Path
    prompts: Path
    calibration: Path


def write_reading(texts: Path, folder: Path, *, length: int = Recipe.length) -> Reading:
    """Write passages and prompts from the held-out help pages, spread evenly over them, into `folder`.

    Args:
        texts: the folder of the lab's held-out texts.
        length: the largest length of a passage in tokens (bytes), the `<|begin|>` token included.
    """
    pages = list(_pages((texts / "manual.txt").read_text(encoding="utf-8"), length - 1))
    made = Reading(folder / "unseen-pages.jsonl", folder / "openings.jsonl", folder / "calibration-pages.jsonl")
    folder.mkdir(parents=True, exist_ok=True)
    scored, continued = spread(pages, PASSAGES), spread(pages[1:], PROMPTS)
    _write(made.text, [{"text": page} for page in scored])
    _write(made.prompts, [{"prompt": _opening(page), "category": "manual"} for page in continued])
    _write(made.calibration, [{"text": page} for page in pages if page not in {*scored, *continued}])
    return made


def _pages(text: str, most: int) -> Iterator[str]:
    """Adjacent paragraphs, as many as fit into `most` bytes; groups of less than half of that are skipped."""
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
    """The beginning of a page, up to the end of a word."""
    return page[:OPENING].rsplit(maxsplit=1)[0]


def spread(items: Sequence[str], wanted: int) -> list[str]:
    """`wanted` of the items, evenly spaced, or all if there are fewer."""
    if len(items) <= wanted:
        return list(items)
    return [items[i * len(items) // wanted] for i in range(wanted)]


def _write(path: Path, records: Sequence[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
