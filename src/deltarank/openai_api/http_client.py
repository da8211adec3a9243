"""Sends requests to one endpoint with the `openai` client: bounded in time and size, retried, the key kept out of all.

Rate limits and passing failures are waited out, as long as the host asks if that is not too long. What remains is an
error with a cure, or, where the host refuses a feature, a `RequestRefusedError`.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deltarank.errors import UsageError
from deltarank.openai_api.failures import LONGEST_WAIT, MOST_BYTES, TRIES, Failures, PassingError
from deltarank.openai_api.redaction import Redaction
from deltarank.openai_api.reference import EndpointRef

if TYPE_CHECKING:
    import httpx2
    from openai import OpenAI

_FIRST_WAIT = 0.5

Payload = dict[str, Any]


@dataclass(frozen=True)
class Reply:
    """The JSON object that came back, its key redacted, and how long it took."""

    payload: Payload
    seconds: float


class EndpointClient:
    """The connection to one endpoint. Threads may share it."""

    def __init__(self, label: str, ref: EndpointRef, *, timeout: float) -> None:
        self._failures = Failures(label, ref, timeout)
        self._redaction = Redaction(ref)
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
            except PassingError as failure:
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
            raise self._failures.of_status(error.status_code, error.body, error.response.headers) from None
        except openai.APITimeoutError:
            raise self._failures.too_slow() from None
        except (openai.APIConnectionError, httpx2.HTTPError) as error:
            raise self._failures.of_connection(error) from None

    def _parse(self, response: httpx2.Response) -> Payload:
        text = response.text
        try:
            payload = json.loads(text)
        except (ValueError, RecursionError):
            payload = None
        if not isinstance(payload, dict):
            raise self._failures.not_json(text)
        redacted: Payload = self._redaction.payload(payload)
        if isinstance(error := redacted.get("error"), dict | str) and "choices" not in redacted:
            raise self._failures.of_error_object(error, response.status_code, response.headers)
        return redacted


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
        response.encoding = "utf-8"  # that of JSON, whatever the header says
        response.stream = _unpacked(response, time.monotonic() + timeout)
        response.headers.pop("Content-Encoding", None)

    http = httpx2.Client(
        timeout=httpx2.Timeout(timeout, connect=min(timeout, 15.0)),
        follow_redirects=False,
        event_hooks={"response": [bound]},
    )
    client = OpenAI(api_key=ref.key, base_url=ref.url, max_retries=0, http_client=http)
    client.organization = client.project = None  # from the environment, and meant for OpenAI alone
    return client


def _unpacked(response: httpx2.Response, deadline: float) -> httpx2.SyncByteStream:
    """The content of a response, bounded as it arrives and again as it is unpacked, piece by piece."""
    import httpx2

    stream: Any = response.stream
    arriving = _bounded(stream, stream.close, deadline)
    packed = httpx2.Response(response.status_code, headers=response.headers, stream=arriving)
    return _bounded(packed.iter_bytes(), packed.close, deadline)


def _bounded(chunks: Iterable[bytes], close: Callable[[], None], deadline: float) -> httpx2.SyncByteStream:
    """A stream that ends with ReadTimeout at the deadline, or when it is too large."""
    import httpx2

    class Bounded(httpx2.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            received = 0
            for chunk in chunks:
                received += len(chunk)
                if received > MOST_BYTES or time.monotonic() > deadline:
                    raise httpx2.ReadTimeout("the answer has no end")
                yield chunk

        def close(self) -> None:
            close()

    return Bounded()
