"""Files of text and of JSON lines, read with errors that name the file and the line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from deltarank.divergence.chat_template import Message
from deltarank.errors import JobError
from deltarank.results import listing


def read_text_file(file: Path) -> str:
    """Raises JobError (slug "text-unreadable") if the file cannot be read or is not UTF-8."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise _unreadable(file, f"byte {error.start:,} is not UTF-8") from None
    except OSError as error:
        raise _unreadable(file, error.strerror or str(error)) from error


def hash_texts(paths: Sequence[str]) -> str:
    """A hash of the contents of these files, and of the files in these folders. A missing file counts as empty."""
    digest = hashlib.sha256()
    for path in map(Path, paths):
        files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
        for file in files:
            data = file.read_bytes() if file.is_file() else b""
            digest.update(f"{file.name} {len(data)}\n".encode() + data)
    return digest.hexdigest()


def read_json_lines(file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The objects of a .jsonl file, each with a name such as "a.jsonl line 3". Empty lines are skipped.

    Raises:
        JobError: (slug "text-unreadable") the file cannot be read, or a line is not a JSON object.
    """
    for number, line in enumerate(read_text_file(file).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = _replace_lone_surrogates(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise _unreadable(file, f"line {number} is not JSON: {error}") from None
        if not isinstance(record, dict):
            raise _unreadable(file, f"line {number} is not a JSON object")
        yield f"{file.name} line {number}", record


def _replace_lone_surrogates(value: Any) -> Any:
    """JSON can escape half of a surrogate pair, which is no character: neither tokenizers nor UTF-8 take it."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_replace_lone_surrogates(each) for each in value]
    if isinstance(value, dict):
        return {_replace_lone_surrogates(key): _replace_lone_surrogates(each) for key, each in value.items()}
    return value


def messages_of(record: Mapping[str, Any], name: str) -> list[Message]:
    """The messages of a line.

    Raises:
        JobError: (slug "text-unreadable") it has none, or they are not {"role": ..., "content": ...}.
    """
    try:
        messages = [(str(each["role"]), each["content"]) for each in record["messages"]]
        if messages and all(isinstance(content, str) for _, content in messages):
            return messages
    except (KeyError, TypeError):
        pass
    raise JobError(
        f'{name} has neither "text" nor "messages" as {{"role": ..., "content": ...}}; its keys are: '
        f"{listing(sorted(map(repr, record))) or 'none'}.",
        cure='Write one document per line: {"text": "..."} or {"messages": [{"role": "user", "content": "..."}, ...]}.',
        slug="text-unreadable",
    )


def _unreadable(file: Path, reason: str) -> JobError:
    return JobError(
        f"Cannot read {file}: {reason}.",
        cure="Save it as UTF-8; a .jsonl file has one JSON object per line.",
        slug="text-unreadable",
    )
