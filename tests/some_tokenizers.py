"""Real tokenizers, made here: bytes, and pieces with spaces in front as SentencePiece has them."""

from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SPECIALS = ["<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>"]

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    "{% if messages | length > 4 %}{{ raise_exception('too many') }}{% endif %}" + TEMPLATE
)

FORGETS = TEMPLATE.replace("{{ m['content'] }}", "{{ m['content'] if loop.last else m['content'].split('=')[-1] }}")
"""Takes what stands before an equals sign out of all messages but the last, as templates do with reasoning."""

NEW_LINES = TEMPLATE.replace("{{ eos_token }}", "{{ eos_token }}\n")
"""Begins a line after each reply, as ChatML does. No model writes it: it stops at the end of its turn."""


def byte_level(template: str | None = TEMPLATE) -> Any:
    """Every byte is a token; `<s>` stands before a text."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=256 + len(SPECIALS), initial_alphabet=alphabet, special_tokens=SPECIALS)
    inner.train_from_iterator([], trainer)
    return _wrapped(inner, template)


def with_spaces_in_front() -> Any:
    """Pieces of words, a space at the head of each, and none before the text: the one after `<s>` is taken off."""
    inner = Tokenizer(models.BPE(unk_token="<s>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    text = ["the cat sat on the mat and the dog sat on the cat", "a mat for the dog"] * 20
    inner.train_from_iterator(text, trainers.BpeTrainer(vocab_size=60, special_tokens=SPECIALS))
    return _wrapped(inner, None)


def _wrapped(inner: Tokenizer, template: str | None) -> Any:
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", inner.token_to_id("<s>"))]
    )
    made = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", model_max_length=64)
    made.chat_template = template
    return made
