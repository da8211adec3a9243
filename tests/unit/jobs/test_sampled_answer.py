"""A sampled text as tokens: what is left out because its tokens cannot be known."""

from __future__ import annotations

from typing import Any

import pytest

from deltarank.jobs.endpoints.sampled_answer import AnswerReader
from deltarank.models import ServedTokens
from deltarank.openai_api import Exchange
from some_tokenizers import byte_level


@pytest.mark.parametrize(
    ("text", "is_read"),
    [
        ("plain text", True),
        ("cut off in a character\ufffd", True),
        ("a byte that is no character \ufffd in it", False),
        ("\ufffd at the beginning", False),
    ],
)
@pytest.mark.parametrize("is_counted", [True, False])
def test_a_text_with_a_part_of_a_character_in_it_is_left_out(text: str, is_read: bool, is_counted: bool) -> None:
    tokenizer = byte_level()
    used = len(tokenizer(text, add_special_tokens=False)["input_ids"])
    usage: dict[str, Any] = {"usage": {"prompt_tokens": 2, "completion_tokens": used}} if is_counted else {}
    payload = {"choices": [{"text": text, "finish_reason": "length"}], **usage}
    reader = AnswerReader(ServedTokens(tokenizer), frozenset({1}))

    read = reader.read(Exchange({"prompt": "Once"}, payload))

    assert (read is not None) == is_read
    if read is not None:
        assert tokenizer.decode(read.tokens) == text.rstrip("\ufffd")
