"""Evidence over tokens, as the points of lines in an SVG that the page draws in its own colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from deltarank.results import EndpointTest, EvidencePoint

WIDTH, HEIGHT = 640, 260
LEFT, RIGHT, TOP, BOTTOM = 64, 150, 12, 34
_LOG_10 = math.log(10)
_MOST_POINTS = 400


@dataclass(frozen=True)
class Line:
    """A polyline, with its name beside its last point."""

    points: str
    name: str
    style: str
    x: float
    y: float


@dataclass(frozen=True)
class Tick:
    """A label at a place on an axis."""

    at: float
    label: str


@dataclass(frozen=True)
class EvidenceChart:
    """A test's e-values against the tokens used, on a logarithmic axis; `limit` is where one decides."""

    lines: tuple[Line, ...]
    limit: Tick
    ticks: tuple[Tick, ...]
    last_tokens: str
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    bottom: int = HEIGHT - BOTTOM


def evidence_chart(test: EndpointTest, alpha: float) -> EvidenceChart:
    """The chart of a test with at least one prompt."""
    points = test.evidence[:: max(1, len(test.evidence) // _MOST_POINTS)]
    exponents = [x / _LOG_10 for each in points for x in (each.log_e_different, each.log_e_same)]
    limit = -math.log10(alpha)
    low, high = math.floor(max(min(*exponents, -1.0), -6)), math.ceil(max(*exponents, limit) + 0.2)
    most = max(points[-1].tokens, 1)

    def place(each: EvidencePoint, log_e: float) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - RIGHT) * each.tokens / most
        return round(x, 1), _height(min(max(log_e / _LOG_10, low), high), low, high)

    lines = (
        _line([place(each, each.log_e_different) for each in points], "they differ", "different"),
        _line([place(each, each.log_e_same) for each in points], "they are alike", "same"),
    )
    step = max(1, (high - low) // 6)
    ticks = tuple(Tick(_height(x, low, high), _power(x)) for x in range(low, high + 1, step))
    return EvidenceChart(lines, Tick(_height(limit, low, high), f"{1 / alpha:g}: decided"), ticks, f"{most:,}")


def _height(exponent: float, low: float, high: float) -> float:
    return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (exponent - low) / (high - low), 1)


def _line(places: Sequence[tuple[float, float]], name: str, style: str) -> Line:
    return Line(" ".join(f"{x},{y}" for x, y in places), name, style, *places[-1])


def _power(exponent: int) -> str:
    return f"{10**exponent:,}" if 0 <= exponent <= 4 else f"1e{exponent}"
