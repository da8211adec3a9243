"""Text to score: documents in tokens, with a mask of those that count."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltarank.divergence.chat_files import AnyTokenizer, Message, beginning, chat_ids, plain_ids
from deltarank.errors import JobError, UsageError
from deltarank.results import count, listing

SUFFIXES = (".txt", ".md", ".jsonl")


@dataclass(frozen=True)
class Document:
    """Some tokens, no more than the context asked for, and which of them are scored.

    name      the file, with the line or the part of it
    scored    scored[i]: the prediction of token i, from those before it, counts. Never the first's
    """

    name: str
    ids: tuple[int, ...]
    scored: tuple[bool, ...]

    @property
    def tokens(self) -> int:
        """How many are scored."""
        return sum(self.scored)

    def pieces(self, tokenizer: AnyTokenizer) -> tuple[str, ...]:
        """One string per token; they join to the text. Of a letter in several tokens, the last has it."""
        return tuple(_pieces(tokenizer, self.ids))


def read_texts(paths: Sequence[Path], tokenizer: AnyTokenizer, *, context: int) -> list[tuple[str, list[Document]]]:
    """The documents of each path, by the path's name.

    A .txt or .md file is one text. A .jsonl file holds a document a line: {"text": ...}, or {"messages": [{"role",
    "content"}, ...]}, laid out by the tokenizer's chat template, of which what the assistant says is scored. A folder
    stands for all such files in it. What is longer than `context` tokens is cut there, and each part is a document.

    Raises:
        UsageError: there is no such file, it is of another kind, or has no token that could be scored.
        JobError: a file is not UTF-8, or a line is not what it should be.
    """
    names = _distinct([path.name or str(path) for path in paths])
    return [
        (name, _with_tokens(path, [part for file in _files(path) for part in _documents(file, tokenizer, context)]))
        for name, path in zip(names, paths, strict=True)
    ]


def cut(name: str, ids: Sequence[int], scored: Sequence[bool], *, begin: Sequence[int], context: int) -> list[Document]:
    """Parts of at most `context` tokens, each after `begin`; those without a scored token are left out."""
    step = max(1, context - len(begin))
    parts = [(ids[at : at + step], scored[at : at + step]) for at in range(0, len(ids), step)]
    made = [_document(name, begin, *part) for part in parts]
    many = len(made) > 1
    return [
        Document(f"{name} ({number})" if many else name, each.ids, each.scored)
        for number, each in enumerate(made, start=1)
        if each.tokens
    ]


def _document(name: str, begin: Sequence[int], ids: Sequence[int], scored: Sequence[bool]) -> Document:
    mask = [*(False for _ in begin), *scored]
    return Document(name, (*begin, *ids), (False, *mask[1:]))


def _documents(file: Path, tokenizer: AnyTokenizer, context: int) -> Iterator[Document]:
    if file.suffix.lower() == ".jsonl":
        for line, record in read_lines(file):
            yield from _recorded(f"{file.name} line {line}", record, tokenizer, context)
        return
    ids = plain_ids(tokenizer, read_file(file))
    yield from cut(file.name, ids, [True] * len(ids), begin=beginning(tokenizer), context=context)


def _recorded(name: str, record: Mapping[str, Any], tokenizer: AnyTokenizer, context: int) -> list[Document]:
    if isinstance(text := record.get("text"), str):
        ids = plain_ids(tokenizer, text)
        return cut(name, ids, [True] * len(ids), begin=beginning(tokenizer), context=context)
    ids, scored = _conversation(tokenizer, messages_of(record, name))
    return cut(name, ids, scored, begin=(), context=context)


def _conversation(tokenizer: AnyTokenizer, messages: Sequence[Message]) -> tuple[list[int], list[bool]]:
    """A conversation in tokens, and which of them the assistant says.

    What is said in message i is what the conversation up to it has beyond the one before it, opened for a reply. Some
    templates rewrite earlier messages (they take out the reasoning): those are no longer what was said, nor scored.
    """
    ids = chat_ids(tokenizer, messages, reply=False)
    scored = [False] * len(ids)
    for number, (role, _) in enumerate(messages):
        if role == "assistant":
            before = chat_ids(tokenizer, messages[:number], reply=True) if number else []
            after = chat_ids(tokenizer, messages[: number + 1], reply=False)
            if ids[: len(after)] == after and after[: len(before)] == before:
                scored[len(before) : len(after)] = [True] * (len(after) - len(before))
    return ids, scored


def messages_of(record: Mapping[str, Any], name: str) -> list[Message]:
    """The messages of a line.

    Raises:
        JobError: it has none, or not as {"role": ..., "content": ...}.
    """
    try:
        messages = [(str(each["role"]), each["content"]) for each in record["messages"]]
        if messages and all(isinstance(content, str) for _, content in messages):
            return messages
    except (KeyError, TypeError):
        pass
    raise JobError(
        f'{name} has neither "text" nor "messages" as {{"role": ..., "content": ...}}; it has '
        f"{listing(sorted(map(repr, record))) or 'nothing'}.",
        cure='Write a document a line: {"text": "..."} or {"messages": [{"role": "user", "content": "..."}, ...]}.',
        slug="text-unreadable",
    )


def read_lines(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The objects of a .jsonl file with their line's number; empty lines are passed over.

    Raises:
        JobError: the file or a line cannot be read.
    """
    for number, line in enumerate(read_file(file).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _unreadable(file, f"line {number} is not JSON: {error}") from None
        if not isinstance(record, dict):
            raise _unreadable(file, f"line {number} is no object in braces")
        yield number, record


def read_file(file: Path) -> str:
    """Raises JobError: the file cannot be read, or is not UTF-8."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise _unreadable(file, f"byte {error.start:,} is not UTF-8") from None
    except OSError as error:
        raise _unreadable(file, error.strerror or str(error)) from error


def _unreadable(file: Path, why: str) -> JobError:
    return JobError(
        f"{file} cannot be read: {why}.",
        cure="Save it as UTF-8; a .jsonl file has one JSON object a line.",
        slug="text-unreadable",
    )


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise UsageError(
            f"there is no text at {str(path)!r}.",
            cure="Give --text a file (.txt, .md, .jsonl) or a folder of such files.",
            slug="text-not-found",
        )
    found = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    if known := [file for file in found if file.suffix.lower() in SUFFIXES]:
        return known
    raise UsageError(
        f"{str(path)!r} holds no text that is read: {', '.join(SUFFIXES)} are.",
        cure="Give --text a file of one of these kinds, or a folder of such files.",
        slug="text-not-found",
    )


def _with_tokens(path: Path, documents: list[Document]) -> list[Document]:
    if documents:
        return documents
    raise UsageError(
        f"{str(path)!r} is too short: {count(0, 'token')} of it can be scored, for each takes one before it.",
        cure="Give --text at least a few pages; a thousand tokens in ten documents make a usable interval.",
        slug="text-short",
    )


def _distinct(names: Sequence[str]) -> list[str]:
    """Equal names are numbered: two files of one name are two texts."""
    return [
        name if names.count(name) == 1 else f"{name} ({names[: at + 1].count(name)})" for at, name in enumerate(names)
    ]


def _pieces(tokenizer: AnyTokenizer, ids: Sequence[int]) -> Iterator[str]:
    """Each token as what it adds to the text: decoded with the tokens before it, for spaces depend on them."""
    before = done = 0
    for end in range(1, len(ids) + 1):
        told, now = (_decoded(tokenizer, ids[before:to]) for to in (done, end))
        if now.endswith("\N{REPLACEMENT CHARACTER}") and end < len(ids):
            yield ""
            continue
        yield now[len(told) :]
        before, done = done, end


def _decoded(tokenizer: AnyTokenizer, ids: Sequence[int]) -> str:
    text: str = tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text
