"""Text from checkpoints, which may be hostile, and numbers, ready to be shown."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from deltarank.results import Loss, percent

NO_BREAK = "\u00a0"
NEARLY_ALL = 0.9999
"""A share just under 1 is rounded to this, so that it never reads "100 %"."""


def escape(text: object) -> str:
    """Any text on one line, without characters that could reorder or hide the text around them.

    Control characters, direction marks, zero-width characters and lone surrogates become escapes:
    "a<newline>b" -> "a\\nb".
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))


def escape_lines(text: object) -> str:
    """As `escape`, but line ends and tabs stay."""
    lines = re.split(r"\r\n?|\n", str(text))
    return "\n".join("\t".join(escape(part) for part in line.split("\t")) for line in lines)


def shorten(text: str, *, most: int = 48) -> str:
    """At most `most` characters, cut in the middle: both ends of a tensor's name identify it."""
    if len(text) <= most:
        return text
    head = (most - 1) // 2
    return f"{text[:head]}…{text[-(most - 1 - head) :]}"


def label(text: str) -> str:
    """A name as a label of a chart or a table: escaped and short."""
    return shorten(escape(text), most=36)


def unique_labels(labels: Iterable[str]) -> list[str]:
    """["a", "a"] -> ["a", "a (2)"]."""
    seen: dict[str, int] = {}
    result = []
    for each in labels:
        seen[each] = seen.get(each, 0) + 1
        result.append(each if seen[each] == 1 else f"{each} ({seen[each]})")
    return result


def significant(value: float | None, digits: int = 4) -> float | None:
    """A number with `digits` significant digits; None if it is unknown or not finite (JSON has no NaN)."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{digits - 1}e}")


def rounded_share(share: float | None) -> float | None:
    """As `significant`, but a share under 1 stays under 1."""
    result = significant(share)
    return NEARLY_ALL if result == 1 and share != 1 else result


def kept_percent(loss: Loss | None) -> str:
    """The energy kept: a loss too small for 1 - x to show still reads "over 99.9 %"."""
    if loss is None:
        return "not measured"
    if loss.relative_error > 0 and loss.energy_kept == 1:
        return percent(NEARLY_ALL)
    return percent(loss.energy_kept)


def terse_percent(share: float | None) -> str:
    """For columns headed "%": 0.4831 -> "48", 1e-9 -> "<0.1"."""
    text = percent(share, unknown="–").removesuffix(" %")
    return text.replace("under ", "<").replace("over ", ">")


def terse_kept(lost: float | None) -> str:
    """The energy kept where this share is lost, for columns headed "%"."""
    if lost is None:
        return "–"
    return terse_percent(NEARLY_ALL if lost > 0 and 1.0 - lost == 1.0 else 1.0 - lost)


def behaviour_percent(share: float | None) -> str:
    """A share of behaviour kept. It is negative where a candidate is farther from the finetune than the base is."""
    if share is not None and share < 0:
        return "\u2212" + percent(-share)
    return percent(share, unknown="–")


def unbroken(text: str) -> str:
    """Keeps a number and its percent sign on one line."""
    return text.replace(" %", f"{NO_BREAK}%")
