"""The code blocks of the docs: which of them are run, and how.

A block of Python, or one with a line that calls deltarank, is run by a test, unless the line above it is
`<!-- not run: REASON -->`.
"""

import os
import re
import shlex
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltarank.cli import main

ROOT = Path(__file__).parents[1]
_BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^>]+) -->\n)?^ *```(?P<language>\w*)\n(?P<text>.*?)^ *```", re.M | re.S
)
_NO_LANGUAGES = ("json", "yaml", "text")


@dataclass(frozen=True)
class Block:
    """A code block of a page. `reason` says why it is not run; None if it is."""

    page: str
    language: str
    text: str
    reason: str | None

    @property
    def commands(self) -> list[str]:
        """The lines that call deltarank, and those that change the folder."""
        if self.language in (*_NO_LANGUAGES, "python"):
            return []
        lines = [part.strip().removeprefix("$ ") for line in self.text.splitlines() for part in line.split("&&")]
        return [line for line in lines if line.startswith(("deltarank ", "cd "))]

    @property
    def can_run(self) -> bool:
        return self.language == "python" or any(line.startswith("deltarank ") for line in self.commands)


def blocks_of(page: str) -> list[Block]:
    """Those of a page, by its path in the repository."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [Block(page, found["language"], found["text"], found["reason"]) for found in _BLOCK.finditer(text)]


def to_run(page: str) -> Iterator[Block]:
    return (block for block in blocks_of(page) if block.can_run and block.reason is None)


def run_blocks(page: str, names: dict[str, Any] | None = None) -> int:
    """Runs the blocks of a page in their order, in the working directory; how many there were."""
    names, done = names or {}, 0
    for block in to_run(page):
        done += 1
        if block.language == "python":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                exec(block.text, names)
        for line in block.commands:
            verb, *words = shlex.split(line, comments=True)
            if verb == "cd":
                os.chdir(words[0])
            else:
                assert main(words) == 0, f"{page}: {line}"
    return done
