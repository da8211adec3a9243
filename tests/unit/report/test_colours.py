"""The colours: told apart by people who see fewer of them, and read on their paper in light and in dark mode.

Colour vision deficiencies are simulated by the matrices of Machado, Oliveira and Fernandes (2009) at severity 1, which
apply to linear RGB. Distances are those of CIELAB (1976); contrast is that of WCAG 2.2.
"""

import itertools
import re
from collections.abc import Sequence
from importlib.resources import files

import numpy as np
import pytest

from deltarank.report.charts.theme import COLOURS, DASHES, INKS, RAMP, SHAPES

SEEN_BY = {
    "all colours": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
WHITE = np.array([0.95047, 1.0, 1.08883])
LEAST_APART, LEAST_APART_IF_ALIKE = 9.5, 30.0
"""Of two colours; a just noticeable difference is 2.3. More if the lines have the same dashes and points."""

AA = 4.5
"""The least contrast of text in WCAG 2.2, level AA."""


def variables(path: str) -> list[dict[str, str]]:
    """The colours of a stylesheet in light mode, and in dark mode."""
    css = files("deltarank.report").joinpath(*path.split("/")).read_text(encoding="utf-8")
    return [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block)) for block in css.split("prefers-color-scheme: dark")]


LIGHT, DARK = variables("document/colours.css")
MODES = pytest.mark.parametrize("mode", [LIGHT, DARK], ids=["light", "dark"])


def linear(colour: str) -> np.ndarray:
    values = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    xyz = TO_XYZ @ np.clip(rgb, 0, 1) / WHITE
    x, y, z = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def contrast(one: str, other: str) -> float:
    darker, lighter = sorted(float(TO_XYZ[1] @ linear(colour)) for colour in (one, other))
    return (lighter + 0.05) / (darker + 0.05)


def series(mode: dict[str, str]) -> Sequence[str]:
    return [mode[f"series-{i}"] for i in range(len(COLOURS))]


def test_pictures_have_the_colours_of_the_light_page() -> None:
    assert list(COLOURS) == series(LIGHT)
    assert {name: LIGHT[name] for name in INKS} == INKS


@MODES
@pytest.mark.parametrize("eyes", SEEN_BY)
def test_two_series_can_be_told_apart(mode: dict[str, str], eyes: str) -> None:
    seen = [lab(SEEN_BY[eyes] @ linear(colour)) for colour in series(mode)]
    for i, j in itertools.combinations(range(len(seen)), 2):
        is_alike = (DASHES[i], SHAPES[i]) == (DASHES[j], SHAPES[j])
        least = LEAST_APART_IF_ALIKE if is_alike else LEAST_APART
        assert float(np.linalg.norm(seen[i] - seen[j])) >= least, (i, j)


@pytest.mark.parametrize("eyes", SEEN_BY)
def test_the_ramp_of_losses_darkens_evenly_for_everybody(eyes: str) -> None:
    lightness = [lab(SEEN_BY[eyes] @ linear(colour))[0] for colour in RAMP]
    steps = -np.diff(lightness)

    assert steps.min() >= 6
    assert steps.max() <= 15


@MODES
def test_text_and_the_names_of_lines_have_the_contrast_of_text(mode: dict[str, str]) -> None:
    for name in ("ink", "muted", *(f"series-{i}" for i in range(len(COLOURS)))):
        assert contrast(mode[name], mode["paper"]) >= AA, name


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
def test_coloured_tokens_can_be_read(mode: int) -> None:
    tokens, page = variables("page/outputs.css")[mode], (LIGHT, DARK)[mode]
    inks = {4: tokens["on-middle"], 5: tokens["on-strong"], 6: tokens["on-strong"]}

    for step in range(1, 7):
        assert contrast(inks.get(step, page["ink"]), tokens[f"k{step}"]) >= AA, step
    assert contrast(page["ink"], tokens["different"]) >= AA
