"""What a host says, fit to be stored and shown: without the key, which hosts repeat, and as plain JSON."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from deltarank.openai_api.reference import EndpointRef
from deltarank.results import escape, shorten

_REDACTED = "[key]"
_LEAST_KEY = 12
"""Characters of a key of which parts are looked for in messages."""

_DEEPEST = 40
_LARGEST_NUMBER = 2**53


@dataclass(frozen=True)
class Redaction:
    """Removes the key of an endpoint."""

    ref: EndpointRef

    def payload(self, value: Any) -> Any:
        """JSON from the host: texts whole and without the key, numbers finite, not too deep."""
        return _plain(value, hidden=self.ref.key if self.ref.has_key else None)

    def message(self, text: str, *, most: int) -> str:
        """A text of the host for a message, on one line: without the key and parts of it.

        Hosts show the first and the last letters of a key that they refuse, and asterisks between them.
        """
        if is_html(text):
            return "an HTML page"
        key, line = self.ref.key, str(self.payload(" ".join(text.split())))
        if self.ref.has_key and len(key) >= _LEAST_KEY:
            line = " ".join(_REDACTED if key[:4] in each or key[-4:] in each else each for each in line.split(" "))
        return shorten(escape(line), most=most)


def is_html(text: str) -> bool:
    return "<html" in text[:2000].lower()


def _plain(value: Any, *, hidden: str | None, depth: int = 0) -> Any:
    if isinstance(value, str):
        whole = value.encode("utf-8", "replace").decode()
        return whole.replace(hidden, _REDACTED) if hidden else whole
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value if math.isfinite(value) and abs(value) <= _LARGEST_NUMBER else None
    if depth > _DEEPEST:
        return None
    if isinstance(value, list):
        return [_plain(each, hidden=hidden, depth=depth + 1) for each in value]
    if isinstance(value, dict):
        within = depth + 1
        return {_plain(name, hidden=hidden): _plain(each, hidden=hidden, depth=within) for name, each in value.items()}
    return value
