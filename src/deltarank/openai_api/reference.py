"""`MODEL@URL`, and the key that goes with it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import SplitResult, urlsplit

from deltarank.errors import UsageError

DEFAULT_KEY_VARIABLE = "OPENAI_API_KEY"
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}\Z")
_NO_KEY = "none"
"""Sent where there is no key: local servers ignore it."""

_KEY_OPTIONS = "--key-a or --key-b"


@dataclass(frozen=True)
class EndpointRef:
    """A model, the address of its API (as far as `/v1`), and its key, which is never shown.

    key_option       the option that names the variable with the key, for messages
    """

    model: str
    url: str
    key: str = field(default=_NO_KEY, repr=False)
    key_option: str = field(default=_KEY_OPTIONS, repr=False)

    @property
    def name(self) -> str:
        return f"{self.model}@{self.url}"

    @property
    def host(self) -> str:
        return urlsplit(self.url).netloc

    @property
    def has_key(self) -> bool:
        return self.key != _NO_KEY


def parse_endpoint(
    given: str,
    key_variable: str | None,
    environment: Mapping[str, str] = os.environ,
    *,
    key_option: str = _KEY_OPTIONS,
) -> EndpointRef:
    """The endpoint of `MODEL@URL`; a model's own name may contain an @.

    Args:
        key_variable: the environment variable with the key; None: OPENAI_API_KEY if it is set.
        key_option: the option that names it, for messages.

    Raises:
        UsageError: (slug "endpoint-reference") it is something else; ("key-not-set") the variable is not set.
    """
    found = re.fullmatch(r"(?P<model>.+)@(?P<url>https?://.+)", given)
    if not found:
        raise _not_an_endpoint(f"{_without_password(given)!r} is not MODEL@URL.", key_option)
    parts = _address(found["url"])
    if parts is None:
        raise _not_an_endpoint(f"The address of model {found['model']!r} has no valid host or port.", key_option)
    if parts.username is not None or parts.query or parts.fragment:
        message = f"The address of model {found['model']!r} has a user name, password, query or fragment."
        raise _not_an_endpoint(message, key_option)
    url = found["url"].rstrip("/")
    for ending in ("/chat/completions", "/completions"):
        url = url.removesuffix(ending)
    return EndpointRef(found["model"], url, _key(key_variable, environment, key_option), key_option)


def _address(url: str) -> SplitResult | None:
    """None: it has no host, or one that no client can ask."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
        is_host = bool(host) and host is not None and not re.search(r"\s", host) and bool(host.encode("idna"))
    except ValueError:
        return None
    return parts if is_host else None


def _without_password(given: str) -> str:
    """What stands before the @ of an address may be a password."""
    return given if "://" not in given else given.split("://", 1)[0] + "://..."


def _not_an_endpoint(message: str, key_option: str) -> UsageError:
    return UsageError(
        message,
        cure="Give the model and the address of the API, such as my-model@https://api.example.com/v1. Keys are read "
        f"from environment variables: see {key_option}.",
        slug="endpoint-reference",
    )


def _key(variable: str | None, environment: Mapping[str, str], option: str) -> str:
    if variable is None:
        return environment.get(DEFAULT_KEY_VARIABLE) or _NO_KEY
    key = environment.get(variable) if _VARIABLE.match(variable) else None
    if not key:
        # What was given is not repeated: it may be the key itself.
        raise UsageError(
            "The environment variable given for a key is not set.",
            cure=f"Set a variable to the key (export MY_KEY=...), and give its name: {option.split()[0]} MY_KEY. A key "
            "itself does not belong on the command line, where other users of the machine can read it.",
            slug="key-not-set",
        )
    if not key.isascii() or not key.isprintable() or len(key) < 4:
        raise UsageError(
            "The environment variable given for a key has a value that cannot be a key.",
            cure="A key is one word of printable ASCII characters, without a line end.",
            slug="key-not-set",
        )
    return key
