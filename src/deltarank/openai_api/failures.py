"""What goes wrong with a request, as an error with a cure, and whether another try may succeed."""

from __future__ import annotations

import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deltarank.errors import JobError
from deltarank.openai_api.redaction import Redaction, is_html
from deltarank.openai_api.reference import EndpointRef
from deltarank.openai_api.retry_after import retry_after
from deltarank.results import duration, escape

TRIES, OPTIONAL_TRIES = 6, 2
LONGEST_WAIT = 60.0
"""Seconds that a host may ask for before a retry."""

MOST_BYTES = 32_000_000
"""Of an answer."""

_CONNECTION_TRIES, _SLOW_TRIES = 3, 2
_PASSING = (408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529)
_QUOTA_WORDS = ("insufficient_quota", "insufficient credits", "insufficient balance", "billing")


class RequestRefusedError(Exception):
    """The endpoint does not do what was asked: a status of 400 to 499 about the request itself."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class PassingError(Exception):
    """May succeed next time. `wait`: seconds that the host asks for; None: it does not say.

    may_be_billed  the host may have made an answer, of which not all came
    """

    def __init__(
        self, error: JobError, *, wait: float | None = None, tries: int = TRIES, may_be_billed: bool = False
    ) -> None:
        super().__init__()
        self.error = error
        self.wait = wait
        self.may_be_billed = may_be_billed
        self.tries = tries


@dataclass(frozen=True)
class Failures:
    """Those of one endpoint. Each method returns the exception to raise."""

    label: str
    ref: EndpointRef
    timeout: float

    def of_status(self, status: int, body: Any, headers: Mapping[str, str]) -> Exception:
        """Of an answer with this HTTP status, or with one that its body has in an error object."""
        message = self._reason(body)
        if status in (401, 403):
            return self._key_refused(status, message)
        if status == 402 or (status == 429 and any(word in message.lower() for word in _QUOTA_WORDS)):
            return self.error(
                what=f"has no quota left for this key (HTTP {status}): {message}",
                cure="Top up the account, or use another key. To continue, repeat the same command.",
                slug="endpoint-quota",
            )
        if status in _PASSING:
            wait = retry_after(headers)
            return PassingError(self._keeps_failing(status, message, wait), wait=wait)
        if 300 <= status < 400:
            return self.error(
                what=f"redirects to another address (HTTP {status}).",
                cure="Give the address that it redirects to. Redirects are not followed, to keep keys here.",
                slug="endpoint-not-found",
            )
        return RequestRefusedError(status, message)

    def of_error_object(self, error: Any, status: int, headers: Mapping[str, str]) -> Exception:
        """In place of an answer. Some hosts answer with status 200 and put the real one into the code of the error."""
        code = error.get("code") if isinstance(error, dict) else None
        return self.of_status(code if isinstance(code, int) and 400 <= code < 600 else status, error, headers)

    def _key_refused(self, status: int, message: str) -> JobError:
        without = "asks for a key" if status == 401 else "refuses the request, which has no key"
        return self.error(
            what=f"{'refuses the key' if self.ref.has_key else without} (HTTP {status}): {message}",
            cure=f"Put the right key into an environment variable, and name it with {self.ref.key_option}.",
            slug="endpoint-key-refused",
        )

    def _keeps_failing(self, status: int, message: str, wait: float | None) -> JobError:
        what = "limits the rate of requests" if status == 429 else f"keeps failing (HTTP {status})"
        if wait is not None and wait > LONGEST_WAIT:
            what += f", and asks to wait {duration(wait)} (deltarank waits {duration(LONGEST_WAIT)} at most)"
        return self.error(
            what=f"{what}: {message}",
            cure="Wait, and repeat the same command: answers so far are kept. --concurrency 1 sends fewer at a time.",
            slug="endpoint-busy",
        )

    def too_slow(self) -> PassingError:
        error = self.error(
            what=f"did not finish an answer within {self.timeout:g} s, or sent more than {MOST_BYTES // 10**6} MB.",
            cure="Wait longer with --timeout, or try at another time. To continue, repeat the same command.",
            slug="endpoint-too-slow",
        )
        return PassingError(error, tries=_SLOW_TRIES, may_be_billed=True)

    def of_connection(self, error: Exception) -> Exception:
        cause = _deepest(error)
        shown = Redaction(self.ref).message(str(cause) or type(cause).__name__, most=160).rstrip(".")
        if isinstance(cause, ssl.SSLError):
            return self.error(
                what=f"cannot be trusted: {shown}.",
                cure="Check the address and the date of this machine. SSL_CERT_FILE can name other authorities.",
                slug="endpoint-unreachable",
            )
        unreachable = self.error(
            what=f"cannot be reached, or ended the connection in the middle of an answer: {shown}.",
            cure="Check the address, and whether the server runs. To continue, repeat the same command.",
            slug="endpoint-unreachable",
        )
        return PassingError(unreachable, tries=_CONNECTION_TRIES, may_be_billed=True)

    def not_json(self, text: str) -> JobError:
        shown = Redaction(self.ref).message(text, most=80)
        found = f"{shown}, not with JSON" if is_html(text) else f"something that is not a JSON object: {shown!r}"
        return self.error(
            what=f"answered with {found}.",
            cure="Give the address of the API itself, which usually ends in /v1, not that of a website.",
            slug="endpoint-not-json",
        )

    def error(self, *, what: str, cure: str, slug: str) -> JobError:
        return JobError(f"Endpoint {self.label} ({escape(self.ref.host)}) {what}", cure=cure, slug=slug)

    def _reason(self, body: Any) -> str:
        inner = body.get("error", body) if isinstance(body, dict) else body
        text = "" if inner is None else _error_message(inner)
        return Redaction(self.ref).message(text, most=240) or "no reason given"


def _deepest(error: BaseException) -> BaseException:
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return error


def _error_message(error: Any) -> str:
    """The text of an error object; with its code, which tells quotas."""
    if not isinstance(error, dict):
        return str(error)
    words = [str(error[name]) for name in ("message", "code", "detail") if error.get(name)]
    return " ".join(words) or json.dumps(error)[:240]
