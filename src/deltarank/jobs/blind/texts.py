"""Answers made ready to be shown side by side: cleaned, without those that name their model, cut at one length."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from deltarank.jobs.blind.options import LONGEST_TEXT

_READ = 4 * LONGEST_TEXT
"""Characters of an answer that are looked at: more are never shown."""

_WORD_BOUNDARY = 0.6
"""A text is cut at a space if there is one in the last 40 %: some scripts have none."""

_SELF_NAMING = re.compile(
    r"\b(chat ?gpt|gpt-?\d\w*|openai|anthropic|claude|google (?:bard|gemini)|gemini|gemma|palm 2|llama|meta ai|mistral"
    r"|mixtral|qwen|tongyi|alibaba|deepseek|smollm\d?|hugging ?face|cohere|command r|phi-\d|falcon-?\d+b|vicuna"
    r"|chatglm|zhipu|yi-\d+b|01\.ai|nemotron|nvidia|olmo|ai2|tülu|tulu|nous ?(?:hermes|research)|hermes-?\d|dbrx"
    r"|databricks|grok|xai|lmsys|open ?assistant|laion|stability ai|stablelm|mpt-\d+b|granite-?\d)\b"
    r"|\bas an? (ai|artificial intelligence|language model)\b|\b(large )?language model\b"
    r"|\bi(?: a|['’])m (?:an? )?(?:ai|artificial intelligence)\b|\bi was (created|trained|developed|made) by\b",
    re.IGNORECASE,
)
"""Families of models, their makers, and how models speak of themselves; FastChat leaves out votes by such a list."""


def clean(text: str) -> str:
    """Plain text: line ends alike, and no control, zero-width or direction characters.

    Markdown stays as it was written, for both models alike.
    """
    lines = re.split(r"\r\n?|[\n\v\f\u0085\u2028\u2029]", text[:_READ])
    shown = ["".join(filter(str.isprintable, re.sub(r"\s", " ", line))).rstrip() for line in lines]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(shown)).strip()


def named_models(names: Iterable[str]) -> re.Pattern[str] | None:
    """A pattern for the names of the models of this test, whatever stands between their parts; None if there is none.

    A single word in lower case, such as the folder `full`, is not looked for: it may be a word of the text.
    """
    patterns = [pattern for name in sorted(set(names)) if (pattern := _name_pattern(name))]
    return re.compile("|".join(patterns)) if patterns else None


def _name_pattern(name: str) -> str | None:
    tail = name.rstrip("/").rsplit("/", 1)[-1].removesuffix(".safetensors")
    parts = [re.escape(part) for part in re.split(r"[\W_]+", tail) if part]
    if len(parts) > 1:
        return r"(?i:\b" + r"[\W_]*".join(parts) + r"\b)"
    is_word = tail.islower() and tail.isalpha()
    return rf"\b{parts[0]}\b" if parts and not is_word and len(tail) > 2 else None


def names_a_model(text: str, names: re.Pattern[str] | None) -> bool:
    """Whether a text names a model or its maker, or says that it is by a language model."""
    return bool(_SELF_NAMING.search(text) or (names and names.search(text)))


def cut_alike(texts: Sequence[str], most: int) -> tuple[tuple[str, ...], int]:
    """Texts cut at the same length, and that length in characters.

    Each loses at least its last word, even the shortest: whether a text ended by itself cannot be seen.
    """
    limit = min(most, min(map(len, texts)) - 1)
    return tuple(_cut(text, limit) for text in texts), limit


def _cut(text: str, limit: int) -> str:
    """At most `limit` characters, up to the end of a word."""
    head = text[:limit]
    space = max(head.rfind(" "), head.rfind("\n"))
    if text[limit : limit + 1].strip() and space >= _WORD_BOUNDARY * limit:
        head = head[:space]
    return f"{head.rstrip()} …"
