"""Files on the Hub's Xet storage, read by ranges through hf_xet; what fails there is read over plain HTTP."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from deltarank.checkpoints.hub.http_ranges import Ranged, RemoteFile, Traffic

PATIENCE = 60.0
"""Seconds that one range may take, beside the time that it takes at `SLOWEST`; then its line counts as dead."""

SLOWEST = 250_000
"""Bytes a second."""

MOST_FAILURES = 3
"""In a row; then the rest of the run goes over HTTP."""

MEMORY = 64_000_000
"""Bytes that hf_xet may hold. Its own default is 1.6 GB."""

Tell = Callable[[str], None]


def is_available() -> bool:
    """Whether hf_xet is there, new enough to read ranges, and not switched off (HF_HUB_DISABLE_XET)."""
    from huggingface_hub import constants

    if constants.HF_HUB_DISABLE_XET:
        return False
    try:
        import hf_xet
    except ImportError:
        return False
    return hasattr(hf_xet, "XetSession") and hasattr(hf_xet, "XetConfig")


class XetLine:
    """One connection to the storage for all files of a model. Its token is fetched, and renewed, from the Hub.

    No request to the Hub is needed for each file, and none of the storage's answers is waited for without end.
    """

    def __init__(self, token_url: str, headers: Mapping[str, str], traffic: Traffic, tell: Tell) -> None:
        self._token_url = token_url
        self._headers = dict(headers)
        self._traffic = traffic
        self._tell = tell
        self._lock = threading.Lock()
        self._group: Any = None
        self._failures = 0
        self._closed = False

    @property
    def is_given_up(self) -> bool:
        return self._closed or self._failures >= MOST_FAILURES

    def read(self, file: RemoteFile, start: int, view: memoryview) -> int:
        """How many bytes came: all, or less where something failed."""
        done, trouble = 0, "it ended early"
        group: Any = None
        try:
            group = self._opened()
            with _watched(group, PATIENCE + view.nbytes / SLOWEST):
                for piece in _stream(group, file, start, start + view.nbytes):
                    self._traffic.count(received=len(piece))
                    part = piece[: view.nbytes - done]
                    view[done : done + len(part)] = part
                    done += len(part)
        # hf_xet raises what it likes, and all of it means the same here: plain HTTP is tried next.
        except Exception as error:
            trouble = f"{type(error).__name__}: {error}"
        self._judge(group, trouble if done < view.nbytes else None)
        return done

    def close(self) -> None:
        self._closed = True
        self._let_go(self._group)

    def _opened(self) -> Any:
        with self._lock:
            if self._group is None:
                self._group = _session().new_download_stream_group(
                    token_refresh_url=self._token_url, token_refresh_headers=self._headers
                )
            self._traffic.count(requests=1)
            return self._group

    def _judge(self, group: Any, trouble: str | None) -> None:
        if trouble is None:
            self._failures = 0
            return
        self._let_go(group)
        self._failures += 1
        if self._failures == MOST_FAILURES and not self._closed:
            self._tell(f"The Xet storage fails ({next(iter(trouble.splitlines()), '')}): going on over plain HTTP.")

    def _let_go(self, group: Any) -> None:
        """A group in which something failed is left to its other readers' failing, and a new one begun."""
        with self._lock:
            if group is not None and group is self._group:
                self._group = None
                group.abort()


class XetFile:
    """A file that lies on Xet storage, with the way to it over HTTP for when Xet fails."""

    def __init__(self, file: RemoteFile, line: XetLine, http: Ranged) -> None:
        self._file = file
        self._line = line
        self._http = http

    def read(self, start: int, view: memoryview) -> None:
        done = 0 if self._line.is_given_up else self._line.read(self._file, start, view)
        if done < view.nbytes:
            self._http.read(start + done, view[done:])


def _stream(group: Any, file: RemoteFile, start: int, end: int) -> Any:
    from hf_xet import XetFileInfo

    return group.download_stream(XetFileInfo(file.xet_hash, file.size), start=start, end=end)


class _watched:
    """Aborts a group of streams that is not done in so many seconds: its iterators take no timeout."""

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
    """One for the process: it holds threads and connections. Settings that its version does not know are left out."""
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
                "reconstruction.download_buffer_size": MEMORY,
                "reconstruction.download_buffer_perfile_size": MEMORY // 4,
                "reconstruction.download_buffer_limit": MEMORY,
                "reconstruction.min_prefetch_buffer": MEMORY // 4,
            }
            config = hf_xet.XetConfig()
            known = set(config.keys())
            chosen = {key: value for key, value in settings.items() if key in known}
            _SESSIONS.append(hf_xet.XetSession(config.with_config(chosen)))
        return _SESSIONS[0]
