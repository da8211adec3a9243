"""Messages as the tokenizer's own chat template lays them out, in tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deltarank.errors import JobError

AnyTokenizer = Any
"""A transformers tokenizer."""

Message = tuple[str, str]
"""(role, content)."""


def has_template(tokenizer: AnyTokenizer) -> bool:
    return bool(getattr(tokenizer, "chat_template", None))


def chat_ids(tokenizer: AnyTokenizer, messages: Sequence[Message], *, reply: bool) -> list[int]:
    """The messages in tokens; `reply`: up to where the assistant's next words begin.

    Without a template, the contents stand one below the other, as text that goes on. A template that knows no system
    message gets it at the head of the first of the user's.

    Raises:
        JobError: the template refuses these messages.
    """
    if not has_template(tokenizer):
        text = "\n\n".join(content for _, content in messages) + ("\n\n" if reply and len(messages) > 1 else "")
        return [*beginning(tokenizer), *plain_ids(tokenizer, text)]
    try:
        return _templated(tokenizer, messages, reply)
    except Exception as error:  # the template is the checkpoint's program: it raises what it likes
        if messages[0][0] == "system" and len(messages) > 1:
            return chat_ids(tokenizer, _without_system(messages), reply=reply)
        raise JobError(
            f"the tokenizer's chat template refuses {_roles(messages)}: {error}",
            cure="Give messages in an order that the model was trained on, or plain text.",
            slug="chat-template",
        ) from error


def beginning(tokenizer: AnyTokenizer) -> list[int]:
    """What the tokenizer puts before every text: its BOS token, or nothing."""
    first = tokenizer("a").input_ids[0]
    return [first] if first == tokenizer.bos_token_id else []


def plain_ids(tokenizer: AnyTokenizer, text: str) -> list[int]:
    """Of any length, without special tokens around it."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    return ids


def _templated(tokenizer: AnyTokenizer, messages: Sequence[Message], reply: bool) -> list[int]:
    plain = [{"role": role, "content": content} for role, content in messages]
    ids: list[int] = tokenizer.apply_chat_template(plain, tokenize=True, add_generation_prompt=reply, return_dict=False)
    return ids


def _without_system(messages: Sequence[Message]) -> list[Message]:
    (_, system), (role, content), *rest = messages
    return [(role, f"{system}\n\n{content}"), *rest]


def _roles(messages: Sequence[Message]) -> str:
    return "messages of " + ", ".join(role for role, _ in messages)
