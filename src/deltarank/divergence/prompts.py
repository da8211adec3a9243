"""Prompts that the models answer: built in, or from a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from deltarank.divergence.chat_template import Message, Tokenizer, encode_messages
from deltarank.divergence.text_files import messages_of, read_json_lines, read_text_file
from deltarank.errors import JobError, UsageError
from deltarank.system import nearest_path_in_words


@dataclass(frozen=True)
class Prompt:
    """A user message, and the conversation before it.

    category    the kind of prompt: "chat", "code", ...; "prompt" if the file does not say
    system      the system message
    history     earlier messages of the conversation, (role, content)
    tokens      its tokens, where they are known and not to be encoded again
    """

    text: str
    category: str = "prompt"
    system: str | None = None
    history: tuple[Message, ...] = ()
    tokens: tuple[int, ...] | None = None

    def ids(self, tokenizer: Tokenizer) -> list[int]:
        """Its tokens, by the tokenizer's chat template if it has one, up to where the answer begins.

        Raises:
            JobError: (slug "chat-template") the template refuses it.
        """
        if self.tokens is not None:
            return list(self.tokens)
        system = [("system", self.system)] if self.system else []
        messages = [*system, *self.history, ("user", self.text)]
        return encode_messages(tokenizer, messages, add_generation_prompt=True)


def read_prompts(path: Path | None) -> list[Prompt]:
    """The prompts of a file, or the built-in ones for None.

    Each line of a .jsonl file is {"prompt": ..., "category": ..., "system": ...}, the last two optional, or
    {"messages": [...]} that end with the user's. In any other file each line is a prompt. Empty lines are skipped.

    Raises:
        UsageError: the file does not exist or has no prompt.
        JobError: it cannot be read.
    """
    if path is None:
        return builtin_prompts()
    if not path.is_file():
        raise UsageError(
            f"There is no file of prompts at {str(path)!r}.{nearest_path_in_words(path)}",
            cure="Use --prompts with a text file that has one prompt per line, or with a .jsonl file.",
            slug="text-not-found",
        )
    if path.suffix.lower() == ".jsonl":
        prompts = [_parse_prompt(name, record) for name, record in read_json_lines(path)]
    else:
        prompts = [Prompt(line.strip()) for line in read_text_file(path).split("\n") if line.strip()]
    if not prompts:
        raise UsageError(
            f"{str(path)!r} has no prompt: every line is empty.",
            cure="Write one prompt per line, or leave --prompts out to use the built-in ones.",
            slug="prompts-empty",
        )
    return prompts


def builtin_prompts() -> list[Prompt]:
    """Prompts of several kinds, among them roleplay with a system message to follow."""
    text = resources.files("deltarank.divergence").joinpath("prompts.json").read_text(encoding="utf-8")
    return [Prompt(each["text"], each["category"], each.get("system")) for each in json.loads(text)]


def built_in_passages() -> tuple[str, ...]:
    """The built-in passages: prose, dialogue, instructions, code."""
    text = resources.files("deltarank.divergence").joinpath("passages.jsonl").read_text(encoding="utf-8")
    return tuple(json.loads(line)["text"] for line in text.splitlines())


def encode_prompts(
    prompts: Sequence[Prompt], tokenizer: Tokenizer, *, max_tokens: int, context: int, first: int = 0
) -> list[list[int]]:
    """The token ids of each prompt.

    Args:
        max_tokens: the longest answer.
        context: the longest text that the model takes, prompt and answer together.
        first: index of `prompts[0]`, if they are part of a longer list.

    Raises:
        UsageError: (slug "prompt-length") a prompt is empty, or too long for such an answer.
        JobError: (slug "chat-template") the chat template refuses a prompt.
    """
    encoded = [prompt.ids(tokenizer) for prompt in prompts]
    for number, ids in enumerate(encoded, start=first + 1):
        if not ids:
            raise UsageError(f"Prompt {number} is empty.", cure="Remove the prompt.", slug="prompt-length")
        if len(ids) + max_tokens > context:
            raise UsageError(
                f"Prompt {number} is too long: {len(ids):,} tokens and an answer of {max_tokens:,} exceed the model's "
                f"context of {context:,}.",
                cure="Use a lower --max-tokens, or --prompts with shorter prompts.",
                slug="prompt-length",
            )
    return encoded


def prompts_that_fit(prompts: Sequence[Prompt], tokenizer: Tokenizer, *, max_tokens: int, context: int) -> list[Prompt]:
    """The prompts that `encode_prompts` accepts.

    Raises:
        JobError: (slug "chat-template") the chat template refuses a prompt.
    """
    return [each for each in prompts if 0 < len(each.ids(tokenizer)) <= context - max_tokens]


def _parse_prompt(name: str, record: Any) -> Prompt:
    category, system = str(record.get("category") or "prompt"), record.get("system")
    if isinstance(text := record.get("prompt"), str) and text.strip():
        return Prompt(text, category, str(system) if system else None)
    if "messages" not in record:
        raise _not_a_prompt(name, 'its "prompt" is missing or empty')
    messages = messages_of(record, name)
    if messages[-1][0] != "user" or not messages[-1][1].strip():
        raise _not_a_prompt(name, f"its last message is from the {messages[-1][0]}, or empty")
    return Prompt(messages[-1][1], category, history=tuple(messages[:-1]))


def _not_a_prompt(name: str, reason: str) -> JobError:
    return JobError(
        f"{name} is not a prompt: {reason}.",
        cure='Write one prompt per line: {"prompt": "..."} or {"messages": [..., {"role": "user", "content": "..."}]}.',
        slug="prompts-unreadable",
    )
