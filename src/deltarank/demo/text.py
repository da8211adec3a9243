"""Text that every Python has: the code of the standard library, the pages of `help()`, and docstrings.

They are of three kinds, so that a finetune learns something that its base does not know. Their order depends on names
only: the same Python gives the same bytes on every machine.
"""

from __future__ import annotations

import ast
import hashlib
import os
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from deltarank.errors import JobError

_SKIPPED_FOLDERS = {
    "__pycache__",
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "pydoc_data",
}
"""Folders that are skipped: not the standard library, or not prose and code, such as tests with broken sources."""

_LONGEST = 200_000
_LEAST = 20_000


@dataclass(frozen=True)
class TrainingText:
    """Documents of one kind. `held_out` is at least a tenth of them by length and is never trained on."""

    name: str
    train: tuple[str, ...]
    held_out: tuple[str, ...]


@dataclass(frozen=True)
class TrainingTexts:
    """`code`: modules without docstrings; `manual`: the topics of `help()`; `docstrings`: those of the modules."""

    code: TrainingText
    manual: TrainingText
    docstrings: TrainingText


def read_texts(limit: int) -> TrainingTexts:
    """The three texts, each truncated to `limit` characters.

    Raises:
        JobError: this Python has no library sources.
    """
    modules = list(_modules(limit))
    code = [code for code, _ in modules]
    docstrings = [prose for _, prose in modules if prose]
    manual = list(_manual())
    if not manual:
        # A Python packaged without pydoc's data: two halves of the docstrings are still two texts.
        manual, docstrings = docstrings[::2], docstrings[1::2]
    return TrainingTexts(
        _text("code", code, limit), _text("manual", manual, limit), _text("docstrings", docstrings, limit)
    )


def split_docstrings(source: str) -> tuple[str, str]:
    """A module's source as (code without docstrings, docstrings without code).

    Raises:
        SyntaxError, ValueError, RecursionError: the source does not parse.
    """
    lines: list[str | None] = list(source.split("\n"))
    prose = []
    for owner in ast.walk(_parse(source)):
        if not isinstance(owner, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if not (found := ast.get_docstring(owner)):
            continue
        first = owner.body[0]
        if (lines[first.lineno - 1] or "")[: first.col_offset].strip():
            continue  # `def f(): "says so"`: the line holds code too
        prose.append(found)
        # Emptied, not deleted: the numbers of the lines below must hold.
        for number in range(first.lineno - 1, first.end_lineno or first.lineno):
            lines[number] = None
    return "\n".join(line for line in lines if line is not None), "\n\n".join(prose)


def _parse(source: str) -> ast.Module:
    with warnings.catch_warnings():
        # Old sources hold escapes that today's parser warns of; they are text here, nothing runs.
        warnings.simplefilter("ignore", SyntaxWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        return ast.parse(source)


def _modules(limit: int) -> Iterator[tuple[str, str]]:
    """The standard library's modules, split, until their code exceeds `limit`."""
    root = Path(sysconfig.get_path("stdlib"))
    total = 0
    for path in sorted(_files(root), key=lambda path: _shuffled(path.relative_to(root).as_posix())):
        if total > limit:
            return
        try:
            source = path.read_text(encoding="utf-8")
            if len(source) > _LONGEST:
                continue  # one module would be a tenth of the whole
            code, prose = split_docstrings(source)
        except (OSError, ValueError, SyntaxError, RecursionError):
            continue  # in another encoding, or broken on purpose: there are plenty more
        total += len(code)
        yield code, prose


def _files(root: Path) -> Iterator[Path]:
    for folder, below, names in os.walk(root):
        below[:] = [name for name in below if name not in _SKIPPED_FOLDERS and not name.startswith("config-")]
        for name in names:
            if name.endswith(".py"):
                yield Path(folder, name)


def _manual() -> Iterator[str]:
    """The topics of `help()`. Paragraphs that topics share appear once."""
    try:
        from pydoc_data.topics import topics  # type: ignore[import-untyped, unused-ignore]
    except ImportError:
        return
    seen: set[str] = set()
    for name in sorted(topics, key=_shuffled):
        paragraphs = [part for part in topics[name].split("\n\n") if part.strip() and part not in seen]
        seen.update(paragraphs)
        if paragraphs:
            yield "\n\n".join(paragraphs)


def _shuffled(name: str) -> str:
    """A sort key by hash: truncation keeps some of everything, and added files do not reorder the others."""
    return hashlib.sha256(name.encode()).hexdigest()


def _text(name: str, documents: Iterable[str], limit: int) -> TrainingText:
    kept = _within(documents, limit)
    total = sum(map(len, kept))
    if len(kept) < 2 or total < min(_LEAST, limit // 2):
        raise JobError(
            f"This Python has {total:,} characters of {name} to train on; the demo needs {_LEAST:,}.",
            cure="Use a Python whose standard library is there as .py files, as python.org's and most systems' is.",
            slug="demo-no-text",
        )
    cut, held = len(kept) - 1, len(kept[-1])
    while held < total / 10:
        cut -= 1
        held += len(kept[cut])
    return TrainingText(name, tuple(kept[:cut]), tuple(kept[cut:]))


def _within(documents: Iterable[str], limit: int) -> list[str]:
    kept: list[str] = []
    remaining = limit
    for document in documents:
        if remaining <= 0:
            break
        kept.append(document[:remaining])
        remaining -= len(kept[-1])
    return kept
