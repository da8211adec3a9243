"""Finds answers that name a model: one of the test, a known family, or themselves as a language model."""

from __future__ import annotations

import re
from collections.abc import Iterable

_NAMES = (
    r"chat ?gpt|gpt-?\d\w*|openai|anthropic|claude|google (?:bard|gemini)|gemini|gemma|palm 2|llama|meta ai|mistral"
    r"|mixtral|qwen|tongyi|alibaba|deepseek|smollm|hugging ?face|cohere|command r|phi-\d|falcon-?\d+b|vicuna|chatglm"
    r"|zhipu|yi-\d+b|01\.ai|nemotron|nvidia|olmo|ai2|tülu|tulu|nous ?(?:hermes|research)|hermes-?\d|dbrx|databricks"
    r"|grok|xai|lmsys|open ?assistant|laion|stability ai|stablelm|mpt-\d+b|granite-?\d"
)
_SELF_NAMING = re.compile(
    # Versions and sizes follow without a space ("Qwen2.5"), and other scripts stand beside a name without one.
    rf"(?<![a-z])(?:{_NAMES})(?![a-z])|通义|千问|阿里巴巴|深度求索|文心一言|智谱"
    r"|\bas an? (?:ai|artificial intelligence|language model)\b|\b(?:large )?language model\b"
    r"|\bi(?: a|['’])m (?:an? )?(?:ai|artificial intelligence)\b|\bi was (?:created|trained|developed|made) by\b"
    r"|\bmod[eè]le de langage\b|\bmodelo de (?:lenguaje|linguagem)\b|\bmodello linguistico\b|\bsprachmodell\b"
    r"|языков(?:ая|ой) модель|语言模型|語言模型|人工智能助手|言語モデル|언어 모델",
    re.IGNORECASE,
)
"""Families of models, their makers, and how models speak of themselves; FastChat leaves out votes by such a list."""

_NO_NAME = re.compile(r"v?\d+(?:\.\d+)*[bmk]?|instruct|chat|base|it|sft|dpo|gguf|hf|final|merged", re.IGNORECASE)
"""Parts at the end of a model's name that its own text may leave out: sizes, versions and kinds of training."""


def named_models(names: Iterable[str]) -> re.Pattern[str] | None:
    """A pattern for the names of the models of this test, whatever stands between their parts; None if there is none.

    Sizes, versions and the like at the end of a name may be missing. A single word in lower case, such as the folder
    `full`, is not looked for: it may be a word of the text.
    """
    patterns = [pattern for name in sorted(set(names)) if (pattern := _name_pattern(name))]
    return re.compile("|".join(patterns)) if patterns else None


def _name_pattern(name: str) -> str | None:
    tail = name.rstrip("/").rsplit("/", 1)[-1].removesuffix(".safetensors")
    parts = [part for part in re.split(r"[\W_]+", tail) if part]
    while len(parts) > 2 and _NO_NAME.fullmatch(parts[-1]):
        parts.pop()
    is_word = tail.islower() and tail.isalpha()
    if not parts or (len(parts) == 1 and (is_word or len(tail) <= 2)):
        return None
    # Letters of other scripts stand beside a name without a space; a version may follow one.
    after = "a-z0-9" if parts[-1][-1].isdecimal() else "a-z"
    pattern = r"(?<![a-zA-Z0-9])" + r"[\W_]*".join(map(re.escape, parts))
    return rf"(?i:{pattern}(?![{after}]))" if len(parts) > 1 else rf"{pattern}(?![{after}A-Z])"


def names_a_model(text: str, names: re.Pattern[str] | None) -> bool:
    """Whether a text names a model or its maker, or says that it is by a language model."""
    return bool(_SELF_NAMING.search(text) or (names and names.search(text)))
