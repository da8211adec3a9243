"""Texts and chat messages encoded as tokens, the messages by the tokenizer's own chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deltarank.errors import JobError

Tokenizer = Any
"""A transformers tokenizer."""

Message = tuple[str, str]
"""(role, content)."""


def encode_messages(
    tokenizer: Tokenizer, messages: Sequence[Message], *, add_generation_prompt: bool = False
) -> list[int]:
    """The token ids of a conversation; with `add_generation_prompt` up to where the assistant's reply begins.

    Without a chat template the contents are joined by blank lines. If the template does not accept a system message,
    it is put in front of the first user message.

    Raises:
        JobError: (slug "chat-template") the template refuses these messages.
    """
    if not getattr(tokenizer, "chat_template", None):
        text = "\n\n".join(content for _, content in messages)
        text += "\n\n" if add_generation_prompt and len(messages) > 1 else ""
        return [*bos_ids(tokenizer), *encode_text(tokenizer, text)]
    try:
        return _apply_template(tokenizer, messages, add_generation_prompt)
    except Exception as error:  # the template is a program of the checkpoint: it can raise anything
        if messages[0][0] == "system" and len(messages) > 1:
            merged = _merge_system_message(messages)
            return encode_messages(tokenizer, merged, add_generation_prompt=add_generation_prompt)
        roles = ", ".join(role for role, _ in messages)
        raise JobError(
            f"The tokenizer's chat template refuses a conversation with the roles {roles}: {error}",
            cure="Put the messages in an order that the model was trained on, or give plain text.",
            slug="chat-template",
        ) from error


def bos_ids(tokenizer: Tokenizer) -> list[int]:
    """The BOS token, if the tokenizer puts it in front of every text; else nothing."""
    first = tokenizer("a").input_ids[0]
    return [first] if first == tokenizer.bos_token_id else []


def encode_text(tokenizer: Tokenizer, text: str) -> list[int]:
    """The token ids of a text of any length, without special tokens around it."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    return ids


def _apply_template(tokenizer: Tokenizer, messages: Sequence[Message], add_generation_prompt: bool) -> list[int]:
    conversation = [{"role": role, "content": content} for role, content in messages]
    ids: list[int] = tokenizer.apply_chat_template(
        conversation, tokenize=True, add_generation_prompt=add_generation_prompt, return_dict=False
    )
    return ids


def _merge_system_message(messages: Sequence[Message]) -> list[Message]:
    (_, system), (role, content), *rest = messages
    return [(role, f"{system}\n\n{content}"), *rest]
