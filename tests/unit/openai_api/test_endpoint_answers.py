"""What is read from an endpoint's answer."""

from __future__ import annotations

from typing import Any

import pytest

from deltarank.openai_api import read_answers


def answer(
    listed: int, used: int | None, finish_reason: str = "length", choices: int = 1, text: str = "..."
) -> dict[str, Any]:
    content = [{"token": f"t{i}", "logprob": -0.5, "top_logprobs": []} for i in range(listed)]
    choice = {"text": text, "finish_reason": finish_reason, "logprobs": {"content": content}}
    usage = {} if used is None else {"usage": {"prompt_tokens": 9, "completion_tokens": used}}
    return {"choices": [choice] * choices, **usage}


@pytest.mark.parametrize(
    ("payload", "positions"),
    [
        (answer(listed=8, used=8), 8),
        (answer(listed=8, used=None), 8),
        (answer(listed=7, used=8, finish_reason="stop"), 7),  # the token that ends a text is not listed
        (answer(listed=8, used=16, choices=2), 8),  # the tokens of both choices together
        (answer(listed=7, used=8), 0),  # one of the tokens is a part of a character, as llama.cpp leaves out
        (answer(listed=5, used=8, finish_reason="stop"), 0),
        (answer(listed=1, used=200), 0),  # reasoning came before
        (answer(listed=3, used=None, text="t0t1t2"), 3),
        (answer(listed=3, used=None, text="t0t1t2 and more"), 0),  # nothing is counted, but the text has more
    ],
)
def test_positions_count_only_if_no_token_before_them_is_hidden(payload: dict[str, Any], positions: int) -> None:
    first = read_answers(payload)[0]

    assert len(first.positions) == len(first.tokens) == positions
