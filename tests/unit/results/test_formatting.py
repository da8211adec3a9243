"""Numbers as people read them."""

import math
import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltarank.results import count, duration, figure, listing, percent, percent_kept, percents, size

TEXTS: dict[Callable[[Any], object], list[tuple[Any, object]]] = {
    percent: [
        (0, "0 %"),
        (1, "100 %"),
        (1e-300, "under 0.1 %"),
        (0.00099, "under 0.1 %"),
        (0.001, "0.1 %"),
        (0.0312, "3.1 %"),
        (-0.0312, "-3.1 %"),
        (-0.277, "-28 %"),
        (0.0994, "9.9 %"),
        (0.0996, "10 %"),
        (0.4831, "48 %"),
        (0.9849, "98 %"),
        (0.985, "98.5 %"),
        (0.9894, "98.9 %"),
        (0.9896, "99.0 %"),
        (0.9951, "99.5 %"),
        (0.99949, "over 99.9 %"),
        (1 - 1e-15, "over 99.9 %"),
        (1.5, "150 %"),
        (None, "unknown"),
        (math.nan, "unknown"),
        (math.inf, "unknown"),
    ],
    percent_kept: [(0, "100 %"), (1e-300, "over 99.9 %"), (0.00099, "over 99.9 %"), (0.25, "75 %"), (1, "0 %")],
    figure: [
        (0, "0"),
        (0.01234, "0.0123"),
        (1.2e-7, "1.2e-7"),
        (-1.2e-7, "-1.2e-7"),
        (12.345, "12.3"),
        (999, "999"),
        (12345, "12,300"),
        (-12345, "-12,300"),
        (None, ""),
        (math.nan, ""),
    ],
    size: [(0, "0 B"), (999, "999 B"), (1234567, "1.23 MB"), (2.45e10, "24.5 GB"), (3e12, "3 TB")],
    duration: [
        (0.2, "under 1 s"),
        (12.4, "12 s"),
        (59.7, "1 min"),
        (90, "1 min 30 s"),
        (120, "2 min"),
        (3599.7, "1 h"),
        (3600, "1 h"),
        (7300, "2 h 2 min"),
    ],
    percents: [
        ([0.6706, 0.1745, 3.8e-6, 0.1549], ["67 %", "17 %", "under 0.1 %", "16 %"]),
        ([0.71, 0.22, 0.0, 0.07], ["71 %", "22 %", "0 %", "7 %"]),
        ([0.81, 0.185, 0.0, 0.005], ["81 %", "18 %", "0 %", "0.5 %"]),
        ([0.995, 0.005], ["99.5 %", "0.5 %"]),
        ([0.002, 0.998], ["0.2 %", "99.8 %"]),
        ([1.0, 0.0, 0.0, 0.0], ["100 %", "0 %", "0 %", "0 %"]),
        ([0.0, 1.0], ["0 %", "100 %"]),
        ([-0.5986, 0.2705, 2.5e-6, 1.0448, 0.2833], ["-60 %", "27 %", "under 0.1 %", "104 %", "28 %"]),
        ([0.4462, 0.2705, 2.5e-6, 0.0, 0.2833], ["45 %", "27 %", "under 0.1 %", "0 %", "28 %"]),
    ],
}


@pytest.mark.parametrize(
    ("format_", "value", "text"), [(format_, *row) for format_, rows in TEXTS.items() for row in rows]
)
def test_numbers_as_text(format_: Callable[[Any], object], value: object, text: object) -> None:
    assert format_(value) == text


@given(st.floats(0, 1, exclude_min=True, exclude_max=True))
def test_0_and_100_percent_are_shown_only_when_exact(share: float) -> None:
    number = float(re.sub(r"[^\d.]", "", percent(share)))

    assert 0 < number < 100


@given(st.floats(0.98, 1))
def test_99_percent_always_has_a_decimal(share: float) -> None:
    assert percent(share) != "99 %"


@given(st.floats(0, 1), st.floats(0, 1))
def test_percent_keeps_the_order(one: float, two: float) -> None:
    def bounds(share: float) -> tuple[float, int]:
        text = percent(share)
        return float(re.sub(r"[^\d.]", "", text)), text.startswith("over") - text.startswith("under")

    low, high = sorted((one, two))
    assert bounds(low) <= bounds(high)


@given(st.floats(0, 1))
def test_percent_has_three_digits_at_most(share: float) -> None:
    assert len(re.sub(r"\D", "", percent(share)).lstrip("0")) <= 3


@given(st.floats(1e-12, 1e12))
def test_a_figure_is_right_to_its_digits(value: float) -> None:
    assert float(figure(value).replace(",", "")) == pytest.approx(value, rel=0.06 if value < 1e-3 else 0.006)


@given(st.floats(0, 1e6))
def test_no_duration_has_sixty_seconds_or_minutes(seconds: float) -> None:
    """Sixty hours are fine: there are no days."""
    assert not {"60 s", "60 min"} & {" ".join(pair) for pair in pairwise(duration(seconds).split())}


@given(st.lists(st.floats(0.01, 1), min_size=2, max_size=5))
def test_shares_of_a_whole_add_up_as_far_as_their_digits_can(parts: list[float]) -> None:
    shares = [part / math.fsum(parts) for part in parts]
    texts = percents(shares)
    numbers = [float(text.removesuffix(" %")) for text in texts if text.startswith(tuple("0123456789"))]

    assert texts[0] == percent(shares[0])
    if min(shares) >= 0.01 and max(shares) < 0.985:
        assert math.isclose(math.fsum(numbers), 100, abs_tol=0.5 if "." in texts[0] else 1e-9)
        assert all(abs(number - 100 * share) < 1 for number, share in zip(numbers, shares, strict=True))


def test_count() -> None:
    assert count(1, "matrix", "matrices") == "1 matrix"
    assert count(2, "matrix", "matrices") == "2 matrices"
    assert count(1200, "tensor") == "1,200 tensors"


def test_listing() -> None:
    assert listing([]) == "none"  # no sentence ends in an empty list
    assert listing(["a"]) == "a"
    assert listing(["a", "b", "c"]) == "a, b and c"
    assert listing(list("abcdef"), most=3) == "a, b, c and 3 more"
