"""How long a host asks to wait before the next try: seconds, or a date (RFC 9110, section 10.2.3)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

_LONGEST = 1e9


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds; None if the host does not say, or says something else.

    A date is compared with the response's own Date: the clock of this machine may be wrong.
    """
    given = headers.get("retry-after", "")
    try:
        seconds = float(given)
    except ValueError:
        then, now = _read_date(given), _read_date(headers.get("date", "")) or datetime.now(UTC)
        return max(0.0, (then - now).total_seconds()) if then else None
    return min(max(0.0, seconds), _LONGEST) if math.isfinite(seconds) else None


def _read_date(given: str) -> datetime | None:
    try:
        found = parsedate_to_datetime(given)
    except (ValueError, OverflowError):
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)
