"""Text from checkpoints is hostile and numbers are rounded honestly: both are settled here."""

from __future__ import annotations

import math
import re

from deltarank.results import Loss, percent

NO_BREAK = "\u00a0"
NEARLY_ALL = 0.9999
"""What a share just under 1 is rounded to, so that it never reads "100 %"."""


def clean(text: object) -> str:
    """Any text on one line, with nothing in it that could turn or hide its neighbours.

    Control characters, marks that change the direction of writing, zero-width characters and lone surrogates are
    shown as escapes: "a<newline>b" -> "a\\nb".
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))


def short(text: str, *, most: int = 48) -> str:
    """At most `most` characters, cut in the middle: both ends of a tensor's name tell something."""
    if len(text) <= most:
        return text
    head = (most - 1) // 2
    return f"{text[:head]}…{text[-(most - 1 - head) :]}"


def rounded(value: float | None, digits: int = 4) -> float | None:
    """A number of `digits` significant digits; None where there is none (JSON knows no NaN)."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{digits - 1}e}")


def rounded_share(share: float | None) -> float | None:
    """As `rounded`, but what is under 1 stays under 1."""
    result = rounded(share)
    return NEARLY_ALL if result == 1 and share != 1 else result


def kept_percent(loss: Loss | None) -> str:
    """The energy kept, as text: a loss too small for 1 - x to show still reads "over 99.9 %"."""
    if loss is None:
        return "not measured"
    if loss.relative_error > 0 and loss.energy_kept == 1:
        return percent(NEARLY_ALL)
    return percent(loss.energy_kept)


def lost_percent(loss: Loss | None) -> str:
    """The energy lost, as text."""
    return "not measured" if loss is None else percent(loss.energy_lost)


def terse_percent(share: float | None) -> str:
    """For columns headed "%": 0.4831 -> "48", 1e-9 -> "<0.1"."""
    text = percent(share, unknown="–").removesuffix(" %")
    return text.replace("under ", "<").replace("over ", ">")


def unbroken(text: str) -> str:
    """Keeps a number and its percent sign on one line."""
    return text.replace(" %", f"{NO_BREAK}%")


def clean_lines(text: object) -> str:
    """As `clean`, but line ends and tabs stay: for text that is read as text."""
    lines = re.split(r"\r\n?|\n", str(text))
    return "\n".join("\t".join(clean(part) for part in line.split("\t")) for line in lines)


def share_percent(share: float | None) -> str:
    """A share of behaviour kept, which is negative where a candidate is farther away than the base."""
    if share is not None and share < 0:
        return "\u2212" + percent(-share)
    return percent(share, unknown="–")
