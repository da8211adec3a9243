"""How long a failed transfer waits before it is tried again: as the server asks, else twice as long each time."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime

MAX_FAILURES = 8
"""Failures in a row, without a byte in between, after which a transfer fails: about a minute."""

FIRST_DELAY, MAX_DELAY = 0.25, 20.0
MAX_REQUESTED_DELAY = 3600.0
"""Seconds that a server may ask us to wait during one transfer."""

NOTED_DELAY = 5.0
"""Requested delays from this many seconds on are reported to the user."""

RETRIED_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
"""HTTP statuses that another try may change."""


class TransferError(Exception):
    """A transfer was stopped, or every try failed; the text says how the last one did."""


class Backoff:
    """Counts the failures of one transfer, and waits between its tries. Received data resets the count."""

    def __init__(
        self,
        on_note: Callable[[str], None] = lambda sentence: None,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._on_note = on_note
        self._sleep = sleep
        self._failures = 0
        self._requested = 0.0

    def reset(self) -> None:
        self._failures = 0

    def wait(self, problem: str, requested_delay: float | None = None) -> None:
        """Sleeps until the next try: for `requested_delay` seconds if the server asked for them.

        Raises:
            TransferError: it failed too often, or the server asks for too long a delay.
        """
        if requested_delay is None:
            self._failures += 1
            if self._failures >= MAX_FAILURES:
                raise TransferError(f"{problem}, {MAX_FAILURES} times in a row")
            self._sleep(_delay(self._failures))
            return
        self._requested += requested_delay
        if self._requested > MAX_REQUESTED_DELAY:
            raise TransferError(f"{problem}, and the server asks to wait another {requested_delay:.0f} s")
        if requested_delay >= NOTED_DELAY:
            self._on_note(f"The Hub asks to wait {requested_delay:.0f} s ({problem}).")
        self._sleep(requested_delay)


def _delay(failures: int) -> float:
    """Exponential, with a jitter of a quarter so that parallel transfers do not retry all at once."""
    return min(FIRST_DELAY * 2.0 ** (failures - 1), MAX_DELAY) * random.uniform(0.75, 1.25)


def requested_delay(headers: Mapping[str, str]) -> float | None:
    """Seconds that an answer asks for: `Retry-After` in seconds or as a date, else the `t=` of `RateLimit`."""
    after = headers.get("Retry-After", "").strip()
    if after.isascii() and after.isdigit():
        return float(after[:9])
    if after:
        try:
            return max(parsedate_to_datetime(after).timestamp() - time.time(), 0.0)
        except ValueError:
            return None
    parts = dict(part.strip().split("=", 1) for part in headers.get("RateLimit", "").split(";") if "=" in part)
    seconds = parts.get("t", "")
    return float(seconds[:9]) + 1.0 if parts.get("r") == "0" and seconds.isascii() and seconds.isdigit() else None
