"""Text from checkpoints, which may be hostile, and numbers, ready to be shown."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from deltarank.results import Loss, escape, percent, percent_kept, shorten

NO_BREAK = "\u00a0"
WORD_JOINER = "\u2060"
NEARLY_ALL = 0.9999
"""A share just under 1 is rounded to this, so that it never reads "100 %"."""


def escape_lines(text: object) -> str:
    """As `escape`, but line ends and tabs stay."""
    lines = re.split(r"\r\n?|\n", str(text))
    return "\n".join("\t".join(escape(part) for part in line.split("\t")) for line in lines)


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
    """In six digits, so that its percentage is that of the share itself. A share under 1 stays under 1."""
    is_below_1 = share is not None and share < 1
    result = significant(share, 6)
    return NEARLY_ALL if result == 1 and is_below_1 else result


def kept_percent(loss: Loss | None) -> str:
    """The energy kept."""
    return "not measured" if loss is None else percent_kept(loss.energy_lost)


def terse_percent(share: float | None) -> str:
    """For columns headed "%": 0.4831 -> "48", 1e-9 -> "<0.1"."""
    return _terse(percent(share, unknown="–"))


def terse_kept(lost: float | None) -> str:
    """The energy kept where this share is lost, for columns headed "%"."""
    return "–" if lost is None else _terse(percent_kept(lost))


def _terse(text: str) -> str:
    return text.removesuffix(" %").replace("under ", "<").replace("over ", ">")


def behaviour_percent(share: float | None) -> str:
    """A share of behaviour kept. It is negative where a candidate is farther from the finetune than the base is."""
    if share is not None and share < 0:
        return "\u2212" + percent(-share)
    return percent(share, unknown="–")


def terse_behaviour(share: float | None) -> str:
    """For columns headed "%"."""
    return _terse(behaviour_percent(share))


def unbroken(text: str) -> str:
    """Keeps a number and its percent sign on one line."""
    return text.replace(" %", f"{NO_BREAK}%")


def with_whole_exponents(text: str) -> str:
    """Keeps 2.3e-6 on one line, which browsers break after the hyphen."""
    return re.sub(r"(?<=\de)-(?=\d)", f"-{WORD_JOINER}", text)


def without_joiners(text: str) -> str:
    """As it is drawn on a picture or printed in a terminal."""
    return text.replace(WORD_JOINER, "")
