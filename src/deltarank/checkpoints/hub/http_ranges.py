"""One file on the Hub, read by byte ranges over HTTP, through interruptions of the connection.

The first request goes to the Hub and follows its redirect to a signed URL; later requests go to that URL until it
expires. Only requests to the Hub itself count towards its rate limit.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlsplit

from deltarank.checkpoints.file_errors import unreadable
from deltarank.checkpoints.hub.backoff import RETRIED_STATUSES, Backoff, TransferError, requested_delay

MAX_DISCARDED_BYTES = 64 << 20
"""Bytes before the wanted ones that are read and discarded if a server ignores ranges."""

EXPIRED_STATUSES = frozenset({401, 403, 404, 410})
"""What a signed URL answers after it expired. From the Hub itself, these answers are final."""


@dataclass(frozen=True)
class RemoteFile:
    """A file in the Hub's listing. `digest` is the SHA-256 of a large file, git's SHA-1 of a small one."""

    name: str
    size: int
    digest: str
    xet_hash: str | None = None


@dataclass
class Traffic:
    """Counts requests for these files, and bytes received."""

    files: frozenset[str] = frozenset()
    requests: int = 0
    received: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def count(self, *, requests: int = 0, received: int = 0) -> None:
        with self._lock:
            self.requests += requests
            self.received += received


class RangeReader(Protocol):
    """A file that is read by position. Several threads may read at once."""

    def read(self, start: int, view: memoryview) -> None:
        """Fills the whole view.

        Raises:
            CheckpointError: (slug "unreadable") what arrives is not the listed file.
            TransferError: every try failed.
            Exception: the client library's, for an answer that is final.
        """


@dataclass
class _Transfer:
    """A range that arrives in chunks."""

    start: int
    view: memoryview
    done: int = 0

    @property
    def remaining(self) -> int:
        return self.view.nbytes - self.done

    @property
    def range_header(self) -> str:
        return f"bytes={self.start + self.done}-{self.start + self.view.nbytes - 1}"

    def append(self, chunk: bytes) -> None:
        """Bytes beyond the range are ignored."""
        part = chunk[: self.remaining]
        self.view[self.done : self.done + len(part)] = part
        self.done += len(part)


class _BusyError(Exception):
    """The server answers that it cannot serve the request now."""

    def __init__(self, status: int, delay: float | None) -> None:
        super().__init__(f"it answers {status}")
        self.delay = delay


class _ExpiredError(Exception):
    """The signed URL has expired."""


class HttpRangeReader:
    """Reads by `Range` requests; a truncated response is continued, and other failures are retried with a backoff."""

    def __init__(
        self,
        file: RemoteFile,
        url: str,
        headers: Mapping[str, str],
        *,
        traffic: Traffic,
        on_note: Callable[[str], None],
        stopped: threading.Event,
    ) -> None:
        self._file = file
        self._url = url
        self._headers = dict(headers)
        self._traffic = traffic
        self._on_note = on_note
        self._stopped = stopped
        self._signed_url: str | None = None
        self._resolving = threading.Lock()

    def read(self, start: int, view: memoryview) -> None:
        transfer = _Transfer(start, view)
        backoff = Backoff(self._on_note, self._stopped.wait)
        while transfer.remaining:
            done_before, delay = transfer.done, None
            try:
                self._request(transfer)
                problem = "the response ended early"
            except _ExpiredError as error:
                problem, delay = str(error), 0.0
            except _BusyError as error:
                problem, delay = str(error), error.delay
            except _transport_error() as error:
                problem = f"{type(error).__name__}: {error}"
            if transfer.done > done_before:
                backoff.reset()
                delay = delay or 0.0  # a connection that breaks after a while is one that works
            if self._stopped.is_set():
                raise TransferError("it was stopped")
            if transfer.remaining:
                backoff.wait(problem, delay)

    def _request(self, transfer: _Transfer) -> None:
        """One request; `transfer.done` says how far it came."""
        from huggingface_hub.utils import get_session  # type: ignore[attr-defined]  # lazily exported

        with ExitStack() as stack:
            # One thread resolves the signed URL; the others wait for the URL, not for the body.
            resolves = self._signed_url is None and self._resolving.acquire()
            if resolves:
                unlock = stack.enter_context(ExitStack())
                unlock.callback(self._resolving.release)
            signed_url = self._signed_url
            response = stack.enter_context(
                get_session().stream(
                    "GET",
                    signed_url or self._url,
                    headers=self._request_headers(transfer, signed_url),
                    timeout=_timeout(),
                    follow_redirects=True,
                )
            )
            self._traffic.count(requests=1)
            self._check(response, signed_url)
            if signed_url is None:
                self._signed_url = str(response.url)
            if resolves:
                unlock.close()
            self._receive(response, transfer)

    def _request_headers(self, transfer: _Transfer, signed_url: str | None) -> dict[str, str]:
        headers = {**self._headers, "Range": transfer.range_header, "Accept-Encoding": "identity"}
        if signed_url is not None and _origin(signed_url) != _origin(self._url):
            headers.pop("authorization", None)
        return headers

    def _check(self, response: Any, signed_url: str | None) -> None:
        """Raises for every answer without content."""
        from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

        status = response.status_code
        if status in (200, 206):
            return
        if signed_url is not None and signed_url != self._url and status in EXPIRED_STATUSES:
            if self._signed_url == signed_url:
                self._signed_url = None
            raise _ExpiredError(f"its signed URL answers {status}")
        if status in RETRIED_STATUSES:
            raise _BusyError(status, requested_delay(response.headers))
        hf_raise_for_status(response)
        raise _BusyError(status, None)

    def _receive(self, response: Any, transfer: _Transfer) -> None:
        to_discard = transfer.start + transfer.done - self._first_byte(response, transfer)
        for chunk in response.iter_raw():  # without a fixed size, which would hold back bytes before a break
            self._traffic.count(received=len(chunk))
            wanted = chunk[to_discard:] if to_discard < len(chunk) else b""
            to_discard = max(to_discard - len(chunk), 0)
            transfer.append(wanted)
            if not transfer.remaining or self._stopped.is_set():
                return  # leaving closes the connection, and with it the rest of the response

    def _first_byte(self, response: Any, transfer: _Transfer) -> int:
        """The body's offset in the file: 0 if the server ignored the range and sends the whole file."""
        position = transfer.start + transfer.done
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise unreadable(self._file.name, "the Hub sends it compressed, so byte ranges are meaningless")
        if response.status_code == 200:
            if position > MAX_DISCARDED_BYTES:
                raise unreadable(self._file.name, "its server does not support byte ranges; use --download")
            return 0
        first, total = _content_range(response.headers.get("Content-Range", ""))
        if first != position or total not in (None, self._file.size):
            raise unreadable(self._file.name, "the Hub sends another range or file than was requested")
        return position


def _content_range(text: str) -> tuple[int | None, int | None]:
    """ "bytes 5-9/100" -> (5, 100); None for a number that is missing."""
    unit, _, rest = text.partition(" ")
    span, _, total = rest.partition("/")
    first = span.partition("-")[0]
    numbers = [int(x) if x.isascii() and x.isdigit() and len(x) < 20 else None for x in (first, total)]
    return (numbers[0], numbers[1]) if unit == "bytes" else (None, None)


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc


def _timeout() -> float:
    """Seconds without a byte after which a connection counts as dead: the client library's setting."""
    from huggingface_hub import constants

    return float(constants.HF_HUB_DOWNLOAD_TIMEOUT)


def _transport_error() -> type[Exception]:
    """The HTTP library's exception for a failing connection; which library it is depends on the client's version."""
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]  # lazily exported

    library = sys.modules[type(get_session()).__module__.partition(".")[0]]
    error: type[Exception] = library.TransportError
    return error
