"""The texts that were given, as records: one for each passage or conversation.

A record is {"text": ...} or {"messages": [...]}. Records that have to stay together have one "group": the passages of a
document, and the answers to a prompt. Other keys of a .jsonl file are not taken over, so a "group" is always ours.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from deltarank.divergence import find_text_files, hash_texts, messages_of, read_json_lines, read_text_file

PASSAGE_CHARACTERS = 1_200
"""A text is cut between paragraphs into passages of about this length, a few hundred tokens each."""

DOCUMENT_CHARACTERS = 9_600
"""Of a longer document in a .jsonl file the beginning is used, so that one cannot fill the whole calibration."""

_REPEATED_CHARACTERS = 40
"""A paragraph of at least this length counts once in .txt and .md files."""

Record = Mapping[str, Any]


def read_records_of(paths: Sequence[Path]) -> list[Record]:
    """The records of these files and folders.

    Raises:
        UsageError, JobError: see `read_texts`.
    """
    seen: set[str] = set()
    return [record for file in _files(paths) for record in _records_of_file(file, seen)]


def fingerprint(paths: Sequence[Path]) -> str:
    """A hash of the contents of all files that are read. Raises UsageError if there is none."""
    return hash_texts([str(file) for file in _files(paths)])


def text_bytes(paths: Sequence[Path]) -> int:
    """Of all files that are read. Raises UsageError if there is none."""
    return sum(file.stat().st_size for file in _files(paths) if file.is_file())


def _files(paths: Sequence[Path]) -> list[Path]:
    return [file for path in paths for file in find_text_files(path)]


def normalise(text: str) -> str:
    """Texts that differ only in white space, in upper and lower case, or in Unicode's form become equal."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def content_of(record: Record) -> str:
    """What the record says, normalised. Records with equal contents are duplicates, also with other roles."""
    text = record.get("text")
    said = [text] if isinstance(text, str) else [each["content"] for each in record["messages"]]
    return normalise("\n".join(said))


def _records_of_file(file: Path, seen: set[str]) -> Iterator[Record]:
    if file.suffix.lower() == ".jsonl":
        for name, record in read_json_lines(file):
            yield from _records_of_line(name, record)
    else:
        yield from ({"text": passage} for passage in passages(read_text_file(file), seen))


def _records_of_line(name: str, record: Record) -> Iterator[Record]:
    """The passages of a text, which are one group, or the conversation."""
    text = record.get("text")
    if not isinstance(text, str):
        yield {"messages": _beginning(messages_of(record, name))}
        return
    pieces = [text] if len(text) <= PASSAGE_CHARACTERS else list(passages(text[:DOCUMENT_CHARACTERS]))
    group = {} if len(pieces) == 1 else {"group": hashlib.sha256(normalise(text).encode()).hexdigest()}
    yield from ({"text": piece, **group} for piece in pieces)


def _beginning(messages: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    """The first messages, of about DOCUMENT_CHARACTERS, and at least up to the first answer."""
    taken: list[dict[str, str]] = []
    characters, answered = 0, False
    for role, content in messages:
        characters += len(content)
        if answered and characters > DOCUMENT_CHARACTERS:
            break
        taken.append({"role": role, "content": content})
        answered |= role == "assistant"
    return taken


def passages(text: str, seen: set[str] | None = None) -> Iterator[str]:
    """Whole paragraphs, joined to about PASSAGE_CHARACTERS. A longer one is cut between sentences, then anywhere.

    Args:
        seen: paragraphs that were there before, normalised. They are left out, and new ones are added.
    """
    passage = ""
    pieces = _pieces(text)
    for piece in pieces if seen is None else _new(pieces, seen):
        if passage and len(passage) + len(piece) > PASSAGE_CHARACTERS:
            yield passage.strip()
            passage = ""
        passage += piece
    if passage.strip():
        yield passage.strip()


def _new(pieces: Iterable[str], seen: set[str]) -> Iterator[str]:
    for piece in pieces:
        content = normalise(piece)
        if content not in seen:
            yield piece
        if len(content) >= _REPEATED_CHARACTERS:
            seen.add(content)


def _pieces(text: str) -> Iterator[str]:
    for paragraph in re.split(r"(?<=\n)\s*\n", text):
        if len(paragraph) <= PASSAGE_CHARACTERS:
            yield paragraph + "\n"
            continue
        for sentence in re.split(r"(?<=[.!?]\s)|(?<=[。！？\n])", paragraph + "\n"):
            yield from (
                sentence[start : start + PASSAGE_CHARACTERS] for start in range(0, len(sentence), PASSAGE_CHARACTERS)
            )
