"""Sends requests to one endpoint with the `openai` client: bounded in time and size, retried, the key kept out of all.

Rate limits and passing failures are waited out, as long as the host asks if that is not too long. What remains is an
error with a cure, or, where the host refuses a feature, a `RequestRefusedError`.
"""

from __future__ import annotations

import json
import math
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deltarank.errors import JobError, UsageError
from deltarank.openai_api.reference import EndpointRef
from deltarank.openai_api.retry_after import retry_after
from deltarank.results import duration, escape, shorten

if TYPE_CHECKING:
    import httpx2
    from openai import APIStatusError, OpenAI

TRIES, OPTIONAL_TRIES = 6, 2
LONGEST_WAIT = 60.0
"""Seconds that a host may ask for before a retry."""

_FIRST_WAIT = 0.5
_CONNECTION_TRIES = 3
_MOST_BYTES = 32_000_000
_PASSING = (408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529)
_QUOTA_WORDS = ("insufficient_quota", "insufficient credits", "insufficient balance", "billing")
_REDACTED = "[key]"
_LEAST_KEY = 12
"""Characters of a key of which parts are looked for in messages."""

Payload = dict[str, Any]


class RequestRefusedError(Exception):
    """The endpoint does not do what was asked: a status of 400 to 499 about the request itself."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass(frozen=True)
class Reply:
    """The JSON object that came back, its key redacted, and how long it took."""

    payload: Payload
    seconds: float


class EndpointClient:
    """The connection to one endpoint. Threads may share it."""

    def __init__(self, label: str, ref: EndpointRef, *, timeout: float) -> None:
        self._label = label
        self._ref = ref
        self._timeout = timeout
        self._stopped = threading.Event()
        self._client = _open_client(ref, timeout)

    def close(self) -> None:
        """Ends waits and requests of other threads, too."""
        self._stopped.set()
        self._client.close()

    def post(
        self,
        path: str,
        body: Mapping[str, Any],
        *,
        tries: int = TRIES,
        on_retry: Callable[[bool], None] = lambda may_be_billed: None,
    ) -> Reply:
        """The answer to a request.

        Args:
            on_retry: called before another attempt, with whether the host may have made an answer in the failed one.

        Raises:
            RequestRefusedError: the endpoint does not do what was asked.
            JobError: it cannot be reached, refuses the key, or gives no usable answer.
        """
        for attempt in range(tries):
            started = time.monotonic()
            try:
                return Reply(self._once(path, body), time.monotonic() - started)
            except _PassingError as failure:
                wait = _FIRST_WAIT * 2**attempt if failure.wait is None else failure.wait
                if attempt + 1 >= min(tries, failure.tries) or wait > LONGEST_WAIT or self._stopped.is_set():
                    raise failure.error from None
                on_retry(failure.may_be_billed)
                self._stopped.wait(wait)
        raise AssertionError("the last attempt raises")

    def _once(self, path: str, body: Mapping[str, Any]) -> Payload:
        import httpx2
        import openai

        try:
            response = self._client.post(path, cast_to=httpx2.Response, body=dict(body))
            return self._parse(response)
        except openai.APIStatusError as error:
            raise self._of_status(error) from None
        except openai.APITimeoutError:
            raise _PassingError(self._too_slow(), tries=2, may_be_billed=True) from None
        except (openai.APIConnectionError, httpx2.HTTPError) as error:
            raise self._of_connection(error) from None

    def _parse(self, response: httpx2.Response) -> Payload:
        text = response.text
        try:
            payload = json.loads(text)
        except (ValueError, RecursionError):
            payload = None
        if not isinstance(payload, dict):
            shown = shorten(escape(self._redact(" ".join(text.split()))), most=80)
            kind = "HTML" if "<html" in text[:2000].lower() else "something"
            raise self._error(
                what=f"answered with {kind} that is not a JSON object: {shown!r}.",
                cure="Give the address of the API itself, which usually ends in /v1, not that of a website.",
                slug="endpoint-not-json",
            )
        redacted: Payload = self._redact(payload)
        if isinstance(error := redacted.get("error"), dict | str) and "choices" not in redacted:
            raise RequestRefusedError(response.status_code, _error_message(error))
        return redacted

    def _of_status(self, error: APIStatusError) -> Exception:
        status, message = error.status_code, self._message(error)
        if status in (401, 403):
            return self._error(
                what=f"refuses the key (HTTP {status}): {message}"
                if self._ref.has_key
                else f"asks for a key (HTTP {status}).",
                cure=f"Put the right key into an environment variable, and name it with {self._ref.key_option}.",
                slug="endpoint-key-refused",
            )
        if status == 402 or (status == 429 and any(word in message.lower() for word in _QUOTA_WORDS)):
            return self._error(
                what=f"has no quota left for this key (HTTP {status}): {message}",
                cure="Top up the account, or use another key. To continue, repeat the same command.",
                slug="endpoint-quota",
            )
        if status in _PASSING:
            wait = retry_after(error.response.headers)
            return _PassingError(self._keeps_failing(status, message, wait), wait=wait)
        if 300 <= status < 400:
            return self._error(
                what=f"redirects to another address (HTTP {status}).",
                cure="Give the address that it redirects to. Redirects are not followed, to keep keys here.",
                slug="endpoint-not-found",
            )
        return RequestRefusedError(status, message)

    def _keeps_failing(self, status: int, message: str, wait: float | None) -> JobError:
        what = "limits the rate of requests" if status == 429 else f"keeps failing (HTTP {status})"
        if wait is not None and wait > LONGEST_WAIT:
            what += f", and asks to wait {duration(wait)} (deltarank waits {duration(LONGEST_WAIT)} at most)"
        return self._error(
            what=f"{what}: {message}",
            cure="Wait, and repeat the same command: answers so far are kept. --concurrency 1 sends fewer at a time.",
            slug="endpoint-busy",
        )

    def _too_slow(self) -> JobError:
        return self._error(
            what=f"did not finish an answer within {self._timeout:g} s, or sent more than {_MOST_BYTES // 10**6} MB.",
            cure="Wait longer with --timeout, or try at another time. To continue, repeat the same command.",
            slug="endpoint-too-slow",
        )

    def _of_connection(self, error: Exception) -> Exception:
        cause = _deepest(error)
        if isinstance(cause, ssl.SSLError):
            return self._error(
                what=f"cannot be trusted: {self._shown(cause)}.",
                cure="Check the address and the date of this machine. SSL_CERT_FILE can name other authorities.",
                slug="endpoint-unreachable",
            )
        unreachable = self._error(
            what=f"cannot be reached, or ended the connection in the middle of an answer: {self._shown(cause)}.",
            cure="Check the address, and whether the server runs. To continue, repeat the same command.",
            slug="endpoint-unreachable",
        )
        return _PassingError(unreachable, tries=_CONNECTION_TRIES, may_be_billed=True)

    def _error(self, *, what: str, cure: str, slug: str) -> JobError:
        return JobError(f"Endpoint {self._label} ({escape(self._ref.host)}) {what}", cure=cure, slug=slug)

    def _message(self, error: APIStatusError) -> str:
        body = error.body
        inner = body.get("error", body) if isinstance(body, dict) else body
        text = _error_message(inner) if inner is not None else ""
        hidden = self._without_parts_of_key(self._redact(" ".join(text.split())))
        return shorten(escape(hidden), most=240) or "no reason given"

    def _without_parts_of_key(self, text: str) -> str:
        """Hosts show the first and the last letters of a key that they refuse, and asterisks between them."""
        key = self._ref.key
        if not self._ref.has_key or len(key) < _LEAST_KEY:
            return text
        return " ".join(_REDACTED if key[:4] in each or key[-4:] in each else each for each in text.split(" "))

    def _shown(self, error: BaseException) -> str:
        return shorten(escape(self._redact(str(error) or type(error).__name__)), most=160).rstrip(".")

    def _redact(self, value: Any) -> Any:
        """Without the key, which hosts may repeat in their answers."""
        return plain_json(value, hidden=self._ref.key if self._ref.has_key else None)


class _PassingError(Exception):
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


def _open_client(ref: EndpointRef, timeout: float) -> OpenAI:
    try:
        import httpx2
        from openai import OpenAI
    except ImportError:
        raise UsageError(
            "Asking an endpoint needs the package `openai`.",
            cure='Install it: pip install "deltarank[endpoints]", or pip install openai.',
            slug="openai-missing",
        ) from None

    def bound(response: httpx2.Response) -> None:
        response.stream = _bounded(response.stream, time.monotonic() + timeout)

    http = httpx2.Client(
        timeout=httpx2.Timeout(timeout, connect=min(timeout, 15.0)),
        follow_redirects=False,
        event_hooks={"response": [bound]},
    )
    client = OpenAI(api_key=ref.key, base_url=ref.url, max_retries=0, http_client=http)
    client.organization = client.project = None  # from the environment, and meant for OpenAI alone
    return client


def _bounded(stream: Any, deadline: float) -> Any:
    """The stream of a response, which ends with ReadTimeout at the deadline, or when it is too large."""
    import httpx2

    class Bounded(httpx2.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            received = 0
            for chunk in stream:
                received += len(chunk)
                if received > _MOST_BYTES or time.monotonic() > deadline:
                    raise httpx2.ReadTimeout("the answer has no end")
                yield chunk

        def close(self) -> None:
            stream.close()

    return Bounded()


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


_DEEPEST = 40
_LARGEST_NUMBER = 2**53


def plain_json(value: Any, *, hidden: str | None, depth: int = 0) -> Any:
    """JSON from somebody else, fit to be stored: texts whole and without `hidden`, numbers finite, not too deep."""
    if isinstance(value, str):
        whole = value.encode("utf-8", "replace").decode()
        return whole.replace(hidden, _REDACTED) if hidden else whole
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value if math.isfinite(value) and abs(value) <= _LARGEST_NUMBER else None
    if depth > _DEEPEST:
        return None
    if isinstance(value, list):
        return [plain_json(each, hidden=hidden, depth=depth + 1) for each in value]
    if isinstance(value, dict):
        within = depth + 1
        return {
            plain_json(name, hidden=hidden): plain_json(each, hidden=hidden, depth=within)
            for name, each in value.items()
        }
    return value
