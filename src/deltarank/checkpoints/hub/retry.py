"""How long a transfer that fails is tried again: as the server says, else twice as long each time."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime

TRIES = 8
"""Failures in a row, without a byte in between, until a transfer is given up: about a minute."""

FIRST_WAIT, LONGEST_WAIT = 0.25, 20.0
LONGEST_TOLD = 3600.0
"""Seconds that a server may make us wait in one transfer."""

WORTH_TELLING = 5.0

RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Answers that another try may change."""


class GaveUpError(Exception):
    """Every try failed; the text says how the last one did."""


class Patience:
    """Counts the failures of one transfer. What arrives in between clears the count."""

    def __init__(
        self,
        tell: Callable[[str], None] = lambda sentence: None,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._tell = tell
        self._sleep = sleep
        self._failures = 0
        self._told = 0.0

    def renew(self) -> None:
        self._failures = 0

    def wait(self, trouble: str, told: float | None = None) -> None:
        """Sleeps until the next try: `told` seconds where the server named them.

        Raises:
            GaveUpError: it failed too often, or the server asks for too long.
        """
        if told is None:
            self._failures += 1
            if self._failures >= TRIES:
                raise GaveUpError(f"{trouble}, {TRIES} times in a row")
            self._sleep(_backoff(self._failures))
            return
        self._told += told
        if self._told > LONGEST_TOLD:
            raise GaveUpError(f"{trouble}, and the server asks to wait {told:.0f} s more")
        if told >= WORTH_TELLING:
            self._tell(f"The Hub asks to wait {told:.0f} s ({trouble}).")
        self._sleep(told)


def _backoff(failures: int) -> float:
    """Spread by a quarter, so that parallel transfers do not come back at one moment."""
    return min(FIRST_WAIT * 2.0 ** (failures - 1), LONGEST_WAIT) * random.uniform(0.75, 1.25)


def told_wait(headers: Mapping[str, str]) -> float | None:
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
