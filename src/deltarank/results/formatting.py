"""How numbers are written for people, and untrusted text.

"0 %" and "100 %" are exact: a loss of 0.00001 % is "under 0.1 %". Numbers have at most three digits; the exact ones are
in the JSON.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def percent(share: float | None, *, unknown: str = "unknown") -> str:
    """A share as a percentage of at most three digits: 0.4831 -> "48 %", 0.0312 -> "3.1 %", 1e-9 -> "under 0.1 %".

    One digit stands after the point under 10 % and from 98.5 % on, so that no column has "99 %" beside "99.0 %".
    """
    if share is None or not math.isfinite(share):
        return unknown
    if share == 0:
        return "0 %"
    if share == 1:
        return "100 %"
    if 0 < share < 0.001:
        return "under 0.1 %"
    if 0.999 < share < 1:
        return "over 99.9 %"
    hundredths = 100 * share
    digits = 1 if abs(hundredths) < 9.95 or 98.5 <= hundredths < 100 else 0
    return f"{hundredths:.{digits}f} %"


def percent_kept(share_lost: float) -> str:
    """What is left of a whole that loses this share. A loss too small to change 1 - x still reads "over 99.9 %"."""
    return "over 99.9 %" if 0 < share_lost < 0.001 else percent(1.0 - share_lost)


def percents(shares: Sequence[float]) -> list[str]:
    """Shares of one whole as percentages that add up to 100, as far as their digits allow.

    The first is written as by `percent`. Others of 1 % or more are whole numbers, rounded by the largest remainder.
    Where a share is negative or exceeds the whole, no reader adds them up: all are written as by `percent`.
    """
    texts = [percent(share) for share in shares]
    if min(shares) < 0 or max(shares) > 1:
        return texts
    whole = [i for i, share in enumerate(shares) if i and 0.01 <= share < 0.985]
    first = round(100 * shares[0], 1 if "." in texts[0] else 0)
    rest = math.fsum(share for i, share in enumerate(shares) if i and i not in whole)
    numbers = {i: math.floor(100 * shares[i] + 1e-9) for i in whole}
    missing = round(100 - first - 100 * rest) - sum(numbers.values())
    largest = sorted(whole, key=lambda i: numbers[i] - 100 * shares[i])
    for i in largest[: max(missing, 0)]:
        numbers[i] += numbers[i] < 100 * shares[i]
    return [f"{numbers[i]} %" if i in numbers else text for i, text in enumerate(texts)]


def figure(value: float | None, *, unknown: str = "") -> str:
    """A number in three digits: 0.01234 -> "0.0123", 1.2e-7 -> "1.2e-7", 12345 -> "12,300"."""
    if value is None or not math.isfinite(value):
        return unknown
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        step = 10 ** (math.floor(math.log10(abs(value))) - 2)
        return f"{round(value / step) * step:,.0f}"
    if abs(value) < 1e-3:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:.3g}"


def power_of_ten(log: float) -> str:
    """exp(log) in three digits, or as a power of ten where it is large: 1e43."""
    return f"1e{math.floor(log / math.log(10))}" if log > math.log(1e4) else figure(math.exp(log))


def count(number: int, noun: str, plural: str | None = None) -> str:
    """1 -> "1 matrix", 2 -> "2 matrices"."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def size(number: float) -> str:
    """Bytes in decimal units: 1234567 -> "1.2 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(number) < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"


_LONGEST_DURATION = 1e15


def duration(seconds: float) -> str:
    """90 -> "1 min 30 s"; 7300 -> "2 h 2 min"."""
    if not seconds < _LONGEST_DURATION:
        return "unknown"
    if seconds < 1:
        return "under 1 s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest} s"
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def listing(items: list[str], *, most: int = 8) -> str:
    """["a", "b", "c"] -> "a, b and c"; from the `most`-th on, the rest is only counted. [] -> "none"."""
    if len(items) > most:
        return ", ".join(items[:most]) + f" and {len(items) - most:,} more"
    if len(items) < 2:
        return items[0] if items else "none"
    return ", ".join(items[:-1]) + f" and {items[-1]}"


def escape(text: object) -> str:
    """Any text on one line, without characters that could reorder or hide the text around them.

    Control characters, direction marks, zero-width characters and lone surrogates become escapes:
    "a<newline>b" -> "a\\nb".
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))


def shorten(text: str, *, most: int = 48) -> str:
    """At most `most` characters, cut in the middle: both ends of a tensor's name identify it."""
    if len(text) <= most:
        return text
    head = (most - 1) // 2
    return f"{text[:head]}…{text[-(most - 1 - head) :]}"
