"""What the models are asked: built in, or from a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from deltarank.divergence.chat_files import AnyTokenizer, Message, chat_ids
from deltarank.divergence.texts import messages_of, read_file, read_lines
from deltarank.errors import JobError, UsageError


@dataclass(frozen=True)
class Prompt:
    """A question, and what stands before it.

    category    what kind of prompt it is: "chat", "code", ...; "prompt" if the file says nothing
    before      earlier messages of the conversation, (role, content)
    """

    text: str
    category: str = "prompt"
    system: str | None = None
    before: tuple[Message, ...] = ()

    def ids(self, tokenizer: AnyTokenizer) -> list[int]:
        """In tokens, by the tokenizer's chat template where it has one, up to where the answer begins.

        Raises:
            JobError: the template refuses it.
        """
        system = [("system", self.system)] if self.system else []
        return chat_ids(tokenizer, [*system, *self.before, ("user", self.text)], reply=True)


def read_prompts(path: Path | None) -> list[Prompt]:
    """The prompts of a file, or the built-in ones for None.

    A .jsonl file holds {"prompt": ..., "category": ..., "system": ...} a line, the last two if wanted, or {"messages":
    [...]} that end with the user's; any other file holds a prompt a line. Empty lines are passed over.

    Raises:
        UsageError: the file is not there, or holds no prompt.
        JobError: it cannot be read.
    """
    if path is None:
        return builtin_prompts()
    if not path.is_file():
        raise UsageError(
            f"there is no file of prompts at {str(path)!r}.",
            cure="Give --prompts a text file with a prompt a line, or a .jsonl file.",
            slug="text-not-found",
        )
    if path.suffix.lower() == ".jsonl":
        prompts = [_prompt(f"{path.name} line {line}", record) for line, record in read_lines(path)]
    else:
        prompts = [Prompt(line.strip()) for line in read_file(path).split("\n") if line.strip()]
    return _some(path, prompts)


def builtin_prompts() -> list[Prompt]:
    """Of several kinds, with roleplay that has lore to honour."""
    written = resources.files("deltarank.divergence").joinpath("prompts.json").read_text(encoding="utf-8")
    return [Prompt(each["text"], each["category"], each.get("system")) for each in json.loads(written)]


def _prompt(name: str, record: Any) -> Prompt:
    category, system = str(record.get("category") or "prompt"), record.get("system")
    if isinstance(text := record.get("prompt"), str) and text.strip():
        return Prompt(text, category, str(system) if system else None)
    if "messages" not in record:
        raise _not_a_prompt(name, 'it has no "prompt", or an empty one')
    messages = messages_of(record, name)
    if messages[-1][0] != "user" or not messages[-1][1].strip():
        raise _not_a_prompt(name, f"its last message is the {messages[-1][0]}'s, or empty")
    return Prompt(messages[-1][1], category, before=tuple(messages[:-1]))


def _not_a_prompt(name: str, why: str) -> JobError:
    return JobError(
        f"{name} is no prompt: {why}.",
        cure='Write a prompt a line: {"prompt": "..."} or {"messages": [..., {"role": "user", "content": "..."}]}.',
        slug="prompts-unreadable",
    )


def _some(path: Path, prompts: Sequence[Prompt]) -> list[Prompt]:
    if prompts:
        return list(prompts)
    raise UsageError(
        f"{str(path)!r} holds no prompt: every line is empty.",
        cure="Write a prompt a line, or leave --prompts out for the built-in ones.",
        slug="prompts-empty",
    )
