"""The bodies of the requests, for /completions and for /chat/completions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from deltarank.openai_api.exchanges import Request
from deltarank.results import EndpointApi

PATHS = {EndpointApi.COMPLETIONS: "/completions", EndpointApi.CHAT: "/chat/completions"}

_TEMPLATE_TOKENS = 32
"""Room for a chat template and a BOS token."""


def make_request(
    side: str,
    key: str,
    model: str,
    api: EndpointApi,
    prompt: str,
    *,
    max_tokens: int,
    is_optional: bool = False,
    **parameters: Any,
) -> Request:
    """A request with `prompt` as text, or as the only message of a user.

    Sampling is at temperature 1 from the whole distribution, unless `parameters` say otherwise.
    """
    shown: Mapping[str, Any] = (
        {"messages": [{"role": "user", "content": prompt}]} if api is EndpointApi.CHAT else {"prompt": prompt}
    )
    body = {"model": model, **shown, "max_tokens": max_tokens, "temperature": 1.0, "top_p": 1.0, **parameters}
    return Request(side, key, PATHS[api], body, is_optional)


def most_tokens(body: Mapping[str, Any]) -> tuple[int, int]:
    """Of the prompt and of the answers of a request, at most: a text has no more tokens than bytes.

    A hidden prompt, and answers longer than was asked for, are not known here.
    """
    shown = body.get("messages", body.get("prompt", ""))
    texts = (
        [str(each.get("content")) for each in shown if isinstance(each, dict)] if isinstance(shown, list) else [shown]
    )
    size = sum(len(str(text).encode("utf-8", "replace")) for text in texts)
    answers = [value for name in ("max_tokens", "n") if isinstance(value := body.get(name, 1), int)]
    return size + _TEMPLATE_TOKENS, math.prod(answers)


def listing_logprobs(api: EndpointApi, count: int) -> dict[str, Any]:
    """The parameters that ask for the `count` most probable tokens at each position."""
    if not count:
        return {}
    return {"logprobs": True, "top_logprobs": count} if api is EndpointApi.CHAT else {"logprobs": count}
