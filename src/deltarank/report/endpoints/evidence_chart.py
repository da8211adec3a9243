"""Evidence over tokens, as the points of lines in an SVG that the page draws in its own colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from deltarank.results import EndpointTest, EvidencePoint, Identification, escape, figure, shorten

WIDTH, HEIGHT = 640, 260
LEFT, RIGHT, TOP, BOTTOM = 64, 150, 12, 34
_LOG_10 = math.log(10)
_MOST_POINTS = 400
_HIGHEST = 12
_LINE_HEIGHT = 14.0
_NAME_LETTERS = 16
"""As many letters of a name fit to the right of the chart on a phone, whose letters are larger."""


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


def identification_chart(found: Identification) -> EvidenceChart:
    """The e-value against each candidate; of an identification with at least one answer."""
    points = found.evidence[:: max(1, len(found.evidence) // _MOST_POINTS)]
    rows = [[each.log_e_values[i] / _LOG_10 for each in points] for i in range(len(found.candidates))]
    limit = -math.log10(found.alpha)
    low, high = -1, min(math.ceil(max(*map(max, rows), limit) + 0.2), _HIGHEST)
    most = max(points[-1].tokens, 1)
    lines = []
    for candidate, row in zip(found.candidates, rows, strict=True):
        places = [
            (
                round(LEFT + (WIDTH - LEFT - RIGHT) * each.tokens / most, 1),
                _height(min(max(value, low), high), low, high),
            )
            for each, value in zip(points, row, strict=True)
        ]
        lines.append(
            _line(
                places,
                shorten(escape(candidate.name), most=_NAME_LETTERS),
                "different" if candidate.excluded else "same",
            )
        )
    step = max(1, (high - low) // 6)
    ticks = tuple(Tick(_height(x, low, high), _power(x)) for x in range(low, high + 1, step))
    edge = Tick(_height(limit, low, high), f"{1 / found.alpha:g}: excluded")
    return EvidenceChart(tuple(_apart(lines)), edge, ticks, f"{most:,}")


def _apart(lines: Sequence[Line]) -> list[Line]:
    """With names that do not overlap: each at least a line below the one above it, and none below the chart."""
    ordered = sorted(lines, key=lambda line: line.y)
    lowest = HEIGHT - BOTTOM
    heights: list[float] = []
    for line in ordered:
        heights.append(max(line.y, heights[-1] + _LINE_HEIGHT if heights else line.y))
    for i in reversed(range(len(heights))):
        heights[i] = min(heights[i], lowest if i + 1 == len(heights) else heights[i + 1] - _LINE_HEIGHT)
    return [replace(line, y=height) for line, height in zip(ordered, heights, strict=True)]


def _height(exponent: float, low: float, high: float) -> float:
    return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (exponent - low) / (high - low), 1)


def _line(places: Sequence[tuple[float, float]], name: str, style: str) -> Line:
    return Line(" ".join(f"{x},{y}" for x, y in places), name, style, *places[-1])


def _power(exponent: int) -> str:
    return figure(10.0**exponent) if -3 <= exponent <= 4 else f"1e{exponent}"
