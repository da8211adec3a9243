"""Texts to score: documents as tokens, with a mask of the tokens that are scored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltarank.divergence.chat_template import Message, Tokenizer, bos_ids, encode_messages, encode_text
from deltarank.divergence.text_files import messages_of, read_json_lines, read_text_file
from deltarank.errors import UsageError
from deltarank.system import nearest_path_in_words

SUFFIXES = (".txt", ".md", ".jsonl")

LONGEST_DOCUMENT = 1024
"""Tokens that a model reads at once, unless its context is shorter."""


@dataclass(frozen=True)
class Document:
    """Tokens that a model reads at once, at most the context, and which of them are scored.

    name      the file, with the line or the part of it
    scored    scored[i]: whether the prediction of token i from the tokens before it is scored; the first never is
    """

    name: str
    ids: tuple[int, ...]
    scored: tuple[bool, ...]

    @property
    def scored_tokens(self) -> int:
        """How many tokens are scored."""
        return sum(self.scored)

    def token_strings(self, tokenizer: Tokenizer) -> tuple[str, ...]:
        """One string per token; joined, they are the text. A character of several tokens belongs to the last."""
        return tuple(_token_strings(tokenizer, self.ids))


def read_texts(paths: Sequence[Path], tokenizer: Tokenizer, *, context: int) -> list[tuple[str, list[Document]]]:
    """The documents of each path, with the path's name.

    A .txt or .md file is one text. Each line of a .jsonl file is a document: {"text": ...}, or {"messages": [{"role",
    "content"}, ...]}, which is laid out by the tokenizer's chat template and of which the assistant's messages are
    scored. A folder stands for all such files in it. Texts longer than `context` tokens are split into several
    documents.

    Raises:
        UsageError: a path does not exist, is of another kind, or has no token that could be scored.
        JobError: a file is not UTF-8, or a line is not a document.
    """
    names = _number_duplicates([path.name or str(path) for path in paths])
    return [(name, _read_text(path, tokenizer, context)) for name, path in zip(names, paths, strict=True)]


def _read_text(path: Path, tokenizer: Tokenizer, context: int) -> list[Document]:
    if documents := [part for file in find_text_files(path) for part in _read_documents(file, tokenizer, context)]:
        return documents
    raise UsageError(
        f"{str(path)!r} is too short: it must contain at least two tokens, because the first one cannot be scored.",
        cure="Use a text of at least a few pages. A thousand tokens in ten documents give a usable interval.",
        slug="text-short",
    )


def _read_documents(file: Path, tokenizer: Tokenizer, context: int) -> Iterator[Document]:
    if file.suffix.lower() == ".jsonl":
        for name, record in read_json_lines(file):
            yield from encode_record(name, record, tokenizer, context)
    else:
        yield from _documents_of_text(file.name, read_text_file(file), tokenizer, context)


def encode_record(name: str, record: Mapping[str, Any], tokenizer: Tokenizer, context: int) -> Iterator[Document]:
    """The documents of a line of a .jsonl file, of at most `context` tokens each.

    Raises:
        JobError: (slug "text-unreadable") it has neither a text nor messages.
    """
    if isinstance(text := record.get("text"), str):
        return _documents_of_text(name, text, tokenizer, context)
    ids, scored = _encode_conversation(tokenizer, messages_of(record, name))
    return _split(name, ids, scored, prefix=(), context=context)


def _documents_of_text(name: str, text: str, tokenizer: Tokenizer, context: int) -> Iterator[Document]:
    ids = encode_text(tokenizer, text)
    return _split(name, ids, [True] * len(ids), prefix=bos_ids(tokenizer), context=context)


def _split(
    name: str, ids: Sequence[int], scored: Sequence[bool], *, prefix: Sequence[int], context: int
) -> Iterator[Document]:
    """Parts of at most `context` tokens, each after `prefix`; those without a scored token are left out."""
    step = max(1, context - len(prefix))
    starts = range(0, len(ids), step)
    for number, start in enumerate(starts, start=1):
        mask = [*(False for _ in prefix), *scored[start : start + step]]
        part = f"{name} ({number})" if len(starts) > 1 else name
        document = Document(part, (*prefix, *ids[start : start + step]), (False, *mask[1:]))
        if document.scored_tokens:
            yield document


def _encode_conversation(tokenizer: Tokenizer, messages: Sequence[Message]) -> tuple[list[int], list[bool]]:
    """The token ids of a conversation, and which of them the assistant writes.

    The tokens of message i are those that the conversation up to it has beyond the conversation before it, opened for a
    reply, up to the end of its turn. Some templates rewrite earlier messages (they remove the reasoning). Rewritten
    messages are not scored: they are not what the assistant wrote.
    """
    ids = encode_messages(tokenizer, messages)
    scored = [False] * len(ids)
    for number, (role, _) in enumerate(messages):
        if role == "assistant":
            before = encode_messages(tokenizer, messages[:number], add_generation_prompt=True) if number else []
            after = encode_messages(tokenizer, messages[: number + 1])
            if ids[: len(after)] == after and after[: len(before)] == before:
                end = len(before) + _written(tokenizer, after[len(before) :])
                scored[len(before) : end] = [True] * (end - len(before))
    return ids, scored


def _written(tokenizer: Tokenizer, ids: Sequence[int]) -> int:
    """How many tokens of a message the model writes: it stops at the end of its turn.

    What follows there is white space of the template, such as ChatML's newline.
    """
    added = getattr(tokenizer, "added_tokens_decoder", {})
    special = {*tokenizer.all_special_ids, *(each for each, token in added.items() if token.special)}
    end = max((i + 1 for i, each in enumerate(ids) if each in special), default=len(ids))
    return len(ids) if _decode(tokenizer, ids[end:]).strip() else end


def find_text_files(path: Path) -> list[Path]:
    """The file, or the files in the folder, that can be read as texts.

    Raises:
        UsageError: (slug "text-not-found") there is none.
    """
    if not path.exists():
        raise UsageError(
            f"There is no text at {str(path)!r}.{nearest_path_in_words(path)}",
            cure="Give a file (.txt, .md, .jsonl) or a folder of such files.",
            slug="text-not-found",
        )
    files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    if readable := [file for file in files if file.suffix.lower() in SUFFIXES]:
        return readable
    raise UsageError(
        f"{str(path)!r} has no text in a format that can be read; these can: {', '.join(SUFFIXES)}.",
        cure="Give a file in one of these formats, or a folder of such files.",
        slug="text-not-found",
    )


def _number_duplicates(names: Sequence[str]) -> list[str]:
    """Equal names get a number each: two files of one name are two texts."""
    return [
        name if names.count(name) == 1 else f"{name} ({names[: index + 1].count(name)})"
        for index, name in enumerate(names)
    ]


def _token_strings(tokenizer: Tokenizer, ids: Sequence[int]) -> Iterator[str]:
    """What each token adds to the text: it is decoded with the token before it, on which its spaces depend."""
    first = done = 0
    for end in range(1, len(ids) + 1):
        before, after = (_decode(tokenizer, ids[first:last]) for last in (done, end))
        if after.endswith("\N{REPLACEMENT CHARACTER}") and end < len(ids):
            yield ""
            continue
        yield after[len(before) :]
        first, done = done, end


def _decode(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    text: str = tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text
