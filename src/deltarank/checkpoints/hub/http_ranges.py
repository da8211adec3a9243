"""One file on the Hub, read by byte ranges over HTTP, whatever the line does.

A file's address is resolved once: the first request goes to the Hub and follows its redirect, all others go to the
signed link that it led to, until that expires. The Hub counts the former only.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlsplit

from deltarank.checkpoints.hub.retry import RETRIED, GaveUpError, Patience, told_wait
from deltarank.checkpoints.source import unreadable

MOST_PASSED_OVER = 64 << 20
"""Bytes before the wanted ones that are read and dropped where a server ignores ranges."""

EXPIRED = frozenset({401, 403, 404, 410})
"""What a signed link answers when its time is over. Asked of the Hub itself, the same answers are final."""


@dataclass(frozen=True)
class RemoteFile:
    """What the Hub's listing says of a file. `digest`: SHA-256 of a large file, git's SHA-1 of a small one."""

    name: str
    size: int
    digest: str
    xet_hash: str | None = None


@dataclass
class Traffic:
    """Counts what came over the line of these files."""

    files: frozenset[str] = frozenset()
    requests: int = 0
    received: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def count(self, *, requests: int = 0, received: int = 0) -> None:
        with self._lock:
            self.requests += requests
            self.received += received


class Ranged(Protocol):
    """A file that is read by position. Several threads may read at once."""

    def read(self, start: int, view: memoryview) -> None:
        """Fills the whole view.

        Raises:
            CheckpointError: (slug "unreadable") what arrives is not the file that was listed.
            GaveUpError: every try failed.
            Exception: what the client library raises for an answer that is final.
        """


@dataclass
class _Transfer:
    """A range that arrives bit by bit."""

    start: int
    view: memoryview
    done: int = 0

    @property
    def left(self) -> int:
        return self.view.nbytes - self.done

    @property
    def header(self) -> str:
        return f"bytes={self.start + self.done}-{self.start + self.view.nbytes - 1}"

    def take(self, piece: bytes) -> None:
        """More than was asked for is passed over."""
        part = piece[: self.left]
        self.view[self.done : self.done + len(part)] = part
        self.done += len(part)


class _LaterError(Exception):
    """The server is there and does not serve us now."""

    def __init__(self, status: int, told: float | None) -> None:
        super().__init__(f"it answers {status}")
        self.told = told


class _ExpiredError(Exception):
    """A signed link that led to the file does not any more."""


class HttpFile:
    """Reads by `Range` requests: cut bodies go on where they broke off, other faults are tried again with patience."""

    def __init__(
        self,
        file: RemoteFile,
        url: str,
        headers: Mapping[str, str],
        *,
        traffic: Traffic,
        tell: Callable[[str], None],
        stopped: threading.Event,
    ) -> None:
        self._file = file
        self._url = url
        self._headers = dict(headers)
        self._traffic = traffic
        self._tell = tell
        self._stopped = stopped
        self._link: str | None = None
        self._resolving = threading.Lock()

    def read(self, start: int, view: memoryview) -> None:
        transfer = _Transfer(start, view)
        patience = Patience(self._tell, self._stopped.wait)
        while transfer.left:
            before, told = transfer.done, None
            try:
                self._ask(transfer)
                trouble = "the answer ended early"
            except _ExpiredError as error:
                trouble, told = str(error), 0.0
            except _LaterError as error:
                trouble, told = str(error), error.told
            except _transport_error() as error:
                trouble = f"{type(error).__name__}: {error}"
            if transfer.done > before:
                patience.renew()
                told = told or 0.0  # a line that drops after a while is a line that works
            if self._stopped.is_set():
                raise GaveUpError("it was stopped")
            if transfer.left:
                patience.wait(trouble, told)

    def _ask(self, transfer: _Transfer) -> None:
        """One request; how far it came stands in the transfer."""
        from huggingface_hub.utils import get_session  # type: ignore[attr-defined]  # lazily exported

        with ExitStack() as stack:
            # One thread resolves, the others wait for its link: not for its body.
            resolving = self._link is None and self._resolving.acquire()
            if resolving:
                unlock = stack.enter_context(ExitStack())
                unlock.callback(self._resolving.release)
            link = self._link
            response = stack.enter_context(
                get_session().stream(
                    "GET",
                    link or self._url,
                    headers=self._request_headers(transfer, link),
                    timeout=_timeout(),
                    follow_redirects=True,
                )
            )
            self._traffic.count(requests=1)
            self._check(response, link)
            if link is None:
                self._link = str(response.url)
            if resolving:
                unlock.close()
            self._receive(response, transfer)

    def _request_headers(self, transfer: _Transfer, link: str | None) -> dict[str, str]:
        headers = {**self._headers, "Range": transfer.header, "Accept-Encoding": "identity"}
        if link is not None and _origin(link) != _origin(self._url):
            headers.pop("authorization", None)
        return headers

    def _check(self, response: Any, link: str | None) -> None:
        """Raises for every answer that brings no bytes."""
        from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

        status = response.status_code
        if status in (200, 206):
            return
        if link is not None and link != self._url and status in EXPIRED:
            if self._link == link:
                self._link = None
            raise _ExpiredError(f"its link answers {status}")
        if status in RETRIED:
            raise _LaterError(status, told_wait(response.headers))
        hf_raise_for_status(response)
        raise _LaterError(status, None)

    def _receive(self, response: Any, transfer: _Transfer) -> None:
        first = self._first_byte(response, transfer)
        passed = transfer.start + transfer.done - first
        for piece in response.iter_raw():  # of no fixed size, which would hold back what came before a line dropped
            self._traffic.count(received=len(piece))
            wanted = piece[passed:] if passed < len(piece) else b""
            passed = max(passed - len(piece), 0)
            transfer.take(wanted)
            if not transfer.left or self._stopped.is_set():
                return  # Leaving closes the connection: what else would come is not wanted.

    def _first_byte(self, response: Any, transfer: _Transfer) -> int:
        """Where in the file the body begins: 0 if the range was ignored and the whole file comes."""
        position = transfer.start + transfer.done
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise unreadable(self._file.name, "the Hub sends it compressed, so no range of it is known")
        if response.status_code == 200:
            if position > MOST_PASSED_OVER:
                raise unreadable(self._file.name, "its server sends whole files only; give --download")
            return 0
        first, total = _content_range(response.headers.get("Content-Range", ""))
        if first != position or total not in (None, self._file.size):
            raise unreadable(self._file.name, "the Hub sends another part, or another file, than it lists")
        return position


def _content_range(text: str) -> tuple[int | None, int | None]:
    """ "bytes 5-9/100" -> (5, 100); None for what is not stated."""
    unit, _, rest = text.partition(" ")
    span, _, total = rest.partition("/")
    first = span.partition("-")[0]
    known = [int(x) if x.isascii() and x.isdigit() and len(x) < 20 else None for x in (first, total)]
    return (known[0], known[1]) if unit == "bytes" else (None, None)


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc


def _timeout() -> float:
    """Seconds without a byte until a line counts as dead: the client library's own setting."""
    from huggingface_hub import constants

    return float(constants.HF_HUB_DOWNLOAD_TIMEOUT)


def _transport_error() -> type[Exception]:
    """What the HTTP library raises for a line that fails. It goes by two names across the client library's versions."""
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]  # lazily exported

    library = sys.modules[type(get_session()).__module__.partition(".")[0]]
    found: type[Exception] = library.TransportError
    return found
