"""Servers with an OpenAI-compatible API: their references, requests, answers and fresh prompts."""

from deltarank.openai_api.answers import (
    Distribution,
    EndpointAnswer,
    Usage,
    largest_probability,
    lists_repeat,
    read_answers,
    read_usage,
    with_text,
)
from deltarank.openai_api.exchanges import (
    EXCHANGES,
    Exchange,
    Request,
    failure_record,
    read_exchanges,
    read_failures,
    to_record,
)
from deltarank.openai_api.failures import OPTIONAL_TRIES, TRIES, RequestRefusedError
from deltarank.openai_api.http_client import EndpointClient, Reply
from deltarank.openai_api.prompts import fresh_prompt
from deltarank.openai_api.reference import EndpointRef, parse_endpoint
from deltarank.openai_api.requests import PATHS, listing_logprobs, make_request, most_tokens

__all__ = [
    "EXCHANGES",
    "OPTIONAL_TRIES",
    "PATHS",
    "TRIES",
    "Distribution",
    "EndpointAnswer",
    "EndpointClient",
    "EndpointRef",
    "Exchange",
    "Reply",
    "Request",
    "RequestRefusedError",
    "Usage",
    "failure_record",
    "fresh_prompt",
    "largest_probability",
    "listing_logprobs",
    "lists_repeat",
    "make_request",
    "most_tokens",
    "parse_endpoint",
    "read_answers",
    "read_exchanges",
    "read_failures",
    "read_usage",
    "to_record",
    "with_text",
]
