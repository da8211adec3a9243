"""The bodies of the requests, for /completions and for /chat/completions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deltarank.openai_api.exchanges import Request
from deltarank.results import EndpointApi

PATHS = {EndpointApi.COMPLETIONS: "/completions", EndpointApi.CHAT: "/chat/completions"}

_CHARACTERS_OF_A_TOKEN = 2
"""Few, so that the caps hold also where a tokenizer splits finely; and room for a template."""

_TEMPLATE_TOKENS = 32


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
    answers = int(parameters.get("n", 1))
    at_most = len(prompt) // _CHARACTERS_OF_A_TOKEN + _TEMPLATE_TOKENS, max_tokens * answers
    return Request(side, key, PATHS[api], body, at_most, is_optional)


def listing_logprobs(api: EndpointApi, count: int) -> dict[str, Any]:
    """The parameters that ask for the `count` most probable tokens at each position."""
    if not count:
        return {}
    return {"logprobs": True, "top_logprobs": count} if api is EndpointApi.CHAT else {"logprobs": count}
