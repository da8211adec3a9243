"""Files on the Hub's Xet storage, read by ranges through hf_xet; what fails there is read over HTTP."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from deltarank.checkpoints.hub.http_ranges import RangeReader, RemoteFile, Traffic

MIN_SPEED = 250_000
"""Bytes per second: a slower connection counts as dead."""

GRACE_SECONDS = 60.0
"""Time that one range may take beyond that."""

MAX_FAILURES = 3
"""Failures in a row after which the rest of the run uses HTTP."""

MAX_MEMORY = 64_000_000
"""Bytes that hf_xet may buffer. Its own default is 1.6 GB."""


def is_available() -> bool:
    """Whether hf_xet is installed, new enough to read ranges, and not disabled by HF_HUB_DISABLE_XET."""
    from huggingface_hub import constants

    if constants.HF_HUB_DISABLE_XET:
        return False
    try:
        import hf_xet
    except ImportError:
        return False
    return hasattr(hf_xet, "XetSession") and hasattr(hf_xet, "XetConfig")


class XetConnection:
    """One connection to the storage for all files of a model. hf_xet fetches and renews its token from the Hub.

    It needs no request to the Hub per file, and does not wait forever for an answer.
    """

    def __init__(
        self, token_url: str, headers: Mapping[str, str], traffic: Traffic, on_note: Callable[[str], None]
    ) -> None:
        self._token_url = token_url
        self._headers = dict(headers)
        self._traffic = traffic
        self._on_note = on_note
        self._lock = threading.Lock()
        self._group: Any = None
        self._failures = 0
        self._closed = False

    @property
    def has_failed(self) -> bool:
        return self._closed or self._failures >= MAX_FAILURES

    def read(self, file: RemoteFile, start: int, view: memoryview) -> int:
        """The number of bytes read: all, or fewer if something failed."""
        done, problem = 0, "it ended early"
        group: Any = None
        try:
            group = self._open_group()
            with _Timeout(group, GRACE_SECONDS + view.nbytes / MIN_SPEED):
                for chunk in _stream(group, file, start, start + view.nbytes):
                    self._traffic.count(received=len(chunk))
                    part = chunk[: view.nbytes - done]
                    view[done : done + len(part)] = part
                    done += len(part)
        # hf_xet promises no exception types; whatever it raises, HTTP is tried next.
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        self._count_failure(group, problem if done < view.nbytes else None)
        return done

    def close(self) -> None:
        self._closed = True
        self._abort(self._group)

    def _open_group(self) -> Any:
        with self._lock:
            if self._group is None:
                self._group = _session().new_download_stream_group(
                    token_refresh_url=self._token_url, token_refresh_headers=self._headers
                )
            self._traffic.count(requests=1)
            return self._group

    def _count_failure(self, group: Any, problem: str | None) -> None:
        if problem is None:
            self._failures = 0
            return
        self._abort(group)
        self._failures += 1
        if self._failures == MAX_FAILURES and not self._closed:
            first_line = next(iter(problem.splitlines()), "")
            self._on_note(f"The Hub's Xet storage fails ({first_line}); the run continues over HTTP.")

    def _abort(self, group: Any) -> None:
        """Drops a group in which something failed; the next read opens a new one."""
        with self._lock:
            if group is not None and group is self._group:
                self._group = None
                group.abort()


class XetRangeReader:
    """A file on Xet storage, read over HTTP when Xet fails."""

    def __init__(self, file: RemoteFile, xet: XetConnection, http: RangeReader) -> None:
        self._file = file
        self._xet = xet
        self._http = http

    def read(self, start: int, view: memoryview) -> None:
        done = 0 if self._xet.has_failed else self._xet.read(self._file, start, view)
        if done < view.nbytes:
            self._http.read(start + done, view[done:])


def _stream(group: Any, file: RemoteFile, start: int, end: int) -> Any:
    from hf_xet import XetFileInfo

    return group.download_stream(XetFileInfo(file.xet_hash, file.size), start=start, end=end)


class _Timeout:
    """Aborts a group of streams after so many seconds: its iterators take no timeout."""

    def __init__(self, group: Any, seconds: float) -> None:
        self._timer = threading.Timer(seconds, group.abort)
        self._timer.daemon = True

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()


_SESSIONS: list[Any] = []
_SESSION_LOCK = threading.Lock()


def _session() -> Any:
    """The process's session: it holds threads and connections. Settings unknown to its version are omitted."""
    import hf_xet
    from huggingface_hub import constants

    with _SESSION_LOCK:
        if not _SESSIONS:
            seconds = f"{constants.HF_HUB_DOWNLOAD_TIMEOUT}s"
            settings = {
                "client.connect_timeout": seconds,
                "client.read_timeout": seconds,
                "client.retry_max_attempts": 3,
                "client.retry_base_delay": "1s",
                "reconstruction.download_buffer_size": MAX_MEMORY,
                "reconstruction.download_buffer_perfile_size": MAX_MEMORY // 4,
                "reconstruction.download_buffer_limit": MAX_MEMORY,
                "reconstruction.min_prefetch_buffer": MAX_MEMORY // 4,
            }
            config = hf_xet.XetConfig()
            valid = set(config.keys())
            supported = {key: value for key, value in settings.items() if key in valid}
            _SESSIONS.append(hf_xet.XetSession(config.with_config(supported)))
        return _SESSIONS[0]
