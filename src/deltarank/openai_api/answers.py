"""The parts of an endpoint's answer that the tests use, in the dialects of vLLM, SGLang, llama.cpp and hosts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Distribution = Mapping[str, float]
"""Token -> log-probability: the listed tokens of one position."""

_PART = "\ufffd"

_SUM_TOLERANCE = 0.01
"""By how much probabilities may exceed 1 in sum, for rounding."""


@dataclass(frozen=True)
class EndpointAnswer:
    """One choice of an answer.

    text           reasoning included
    tokens         what was generated, as far as log-probabilities came with it; none if they lack tokens in the middle
    positions      the distribution of each generated token; `prompt_positions` of each token of the prompt, where known
    token_ids      of what was generated, where they are given
    has_ended      whether the model ended the text itself; None: not said
    """

    text: str
    reasoning: str
    tokens: tuple[str, ...]
    positions: tuple[Distribution, ...]
    prompt_positions: tuple[Distribution, ...]
    has_token_ids: bool
    token_ids: tuple[int, ...] = ()
    has_ended: bool | None = None

    @property
    def whole_text(self) -> str:
        return self.reasoning + self.text


@dataclass(frozen=True)
class Usage:
    """Tokens as the endpoint counts them; None where it does not."""

    prompt_tokens: int | None
    completion_tokens: int | None


def largest_probability(listed: Distribution) -> float:
    """Of the tokens of one position; at least one is listed."""
    return min(1.0, math.exp(max(listed.values())))


def with_text(listed: Distribution) -> Distribution:
    """The listed tokens that have a text of their own.

    Servers write special tokens, or parts of a character, as empty texts or as U+FFFD, and each does so for others:
    vLLM for parts of a character, llama.cpp for special tokens. What is left out counts as not listed.
    """
    return {token: value for token, value in listed.items() if token and _PART not in token}


def lists_repeat(lists: Sequence[Distribution]) -> bool:
    """Whether lists after different prompts are the same, which those of a model never are.

    Their first three entries are compared: beside them may stand the token that was sampled.
    """
    return len(lists) > 1 and len({_most_probable(each) for each in lists}) == 1


def _most_probable(listed: Distribution) -> tuple[tuple[str, float], ...]:
    return tuple(sorted(listed.items(), key=lambda item: -item[1])[:3])


def read_answers(payload: Mapping[str, Any]) -> list[EndpointAnswer]:
    """The choices of an answer; one without any text is an empty answer."""
    choices = payload.get("choices")
    return [_answer(each, payload) for each in choices if isinstance(each, dict)] if isinstance(choices, list) else []


def read_usage(payload: Mapping[str, Any]) -> Usage:
    usage = payload.get("usage")
    found = usage if isinstance(usage, dict) else {}
    return Usage(_whole(found.get("prompt_tokens")), _whole(found.get("completion_tokens")))


def _whole(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value < 10**9 else None


def _answer(choice: Mapping[str, Any], payload: Mapping[str, Any]) -> EndpointAnswer:
    message = choice.get("message")
    source = message if isinstance(message, dict) else choice
    text = source.get("content" if source is message else "text")
    reasoning = source.get("reasoning_content") or source.get("reasoning")
    listed = choice.get("logprobs")
    tokens, positions = _generated(listed if isinstance(listed, dict) else {})
    ids = _token_ids(choice, listed)
    has_ids = bool(ids)
    whole = "".join(each for each in (text, reasoning) if isinstance(each, str))
    if _lacks_tokens(choice, payload, tokens, whole):
        tokens, positions = (), ()
        ids = ids if choice.get("token_ids") else ()
    prompt = choice.get("prompt_logprobs") or payload.get("prompt_logprobs")
    return EndpointAnswer(
        text if isinstance(text, str) else "",
        reasoning if isinstance(reasoning, str) else "",
        tokens,
        positions,
        tuple(_by_id(each) for each in prompt if isinstance(each, dict)) if isinstance(prompt, list) else (),
        has_token_ids=has_ids,
        token_ids=ids,
        has_ended=finish == "stop" if isinstance(finish := choice.get("finish_reason"), str) else None,
    )


def _lacks_tokens(choice: Mapping[str, Any], payload: Mapping[str, Any], listed: Sequence[str], text: str) -> bool:
    """Whether tokens were generated that are not listed, so that nobody knows which tokens the listed ones follow.

    llama.cpp lists no token that is a part of a character, and hosts none of the reasoning. At the end of a text, the
    token that ends it may be missing. Where the endpoint does not count the tokens, the text shows them: a token that
    is listed has as many letters as it adds to the text at least.
    """
    used = read_usage(payload).completion_tokens
    if used is None or payload["choices"] != [choice]:
        return bool(listed) and sum(map(len, listed)) < len(text)
    return used - (choice.get("finish_reason") == "stop") > len(listed)


def _token_ids(choice: Mapping[str, Any], listed: Any) -> tuple[int, ...]:
    """As vLLM gives them, or llama.cpp beside the log-probabilities."""
    content = listed.get("content") if isinstance(listed, dict) else None
    inside = [each.get("id") for each in content if isinstance(each, dict)] if isinstance(content, list) else []
    given = choice.get("token_ids")
    ids = given if isinstance(given, list) and given else inside
    known = [each for each in ids if isinstance(each, int) and 0 <= each < 2**31]
    return tuple(known) if len(known) == len(ids) else ()


def _generated(listed: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[Distribution, ...]]:
    """In the dialect of chat ({"content": [...]}), which llama.cpp uses for completions too, or of completions."""
    content = listed.get("content")
    if isinstance(content, list):
        entries = [each for each in content if isinstance(each, dict)]
        return tuple(map(_key, entries)), tuple(
            _checked((_key(each), each.get("logprob")) for each in _alternatives(entry)) for entry in entries
        )
    tokens, own, tops = (listed.get(name) for name in ("tokens", "token_logprobs", "top_logprobs"))
    if not isinstance(tokens, list) or not isinstance(own, list):
        return (), ()
    tops = tops if isinstance(tops, list) else [None] * len(tokens)
    return tuple(map(str, tokens)), tuple(
        _checked([*(top.items() if isinstance(top, dict) else ()), (str(token), value)])
        for token, value, top in zip(tokens, own, tops, strict=False)
    )


def _alternatives(entry: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    top = entry.get("top_logprobs")
    return [*(each for each in top if isinstance(each, dict)), entry] if isinstance(top, list) else [entry]


def _key(entry: Mapping[str, Any]) -> str:
    """A token by its bytes where they are given: half a character has no text."""
    data = entry.get("bytes")
    if isinstance(data, list) and data and all(type(each) is int and 0 <= each < 256 for each in data):
        return bytes(data).decode("utf-8", "surrogateescape")
    return str(entry.get("token", ""))


def _by_id(position: Mapping[str, Any]) -> Distribution:
    """A position of vLLM's prompt_logprobs: token id -> {"logprob", "rank", "decoded_token"}."""
    return _checked(
        (token, each.get("logprob") if isinstance(each, dict) else each) for token, each in position.items()
    )


def _checked(pairs: Iterable[tuple[str, Any]]) -> Distribution:
    """Finite log-probabilities; empty if they are none: above 0, or more than 1 in sum."""
    found = {token: float(value) for token, value in pairs if isinstance(value, int | float) and value > -1e4}
    if any(not math.isfinite(value) or value > _SUM_TOLERANCE for value in found.values()):
        return {}
    return found if math.fsum(map(math.exp, found.values())) <= 1 + _SUM_TOLERANCE else {}
