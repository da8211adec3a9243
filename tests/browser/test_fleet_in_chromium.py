"""The page of a fleet in a real Chromium: sorted, filtered, at every width, by keyboard, and printed."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from chromium import Opened
from some_fleets import RANKS, made_up_fleet

from deltarank.report import fleet_html

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fleet") / "fleet.html"
    path.write_text(fleet_html(made_up_fleet(60)), encoding="utf-8")
    return path


@pytest.fixture
def open_page(open_file, file) -> Callable[..., Opened]:
    return partial(open_file, file)


def column(opened: Opened, name: str) -> list[str]:
    return opened.page.evaluate(
        "name => [...document.querySelectorAll('#rows tbody tr:not([hidden])')].map(row => row.dataset[name])", name
    )


def test_every_column_sorts(open_page) -> None:
    opened = open_page()
    for key in ("change", "needed", "cosine"):
        opened.page.click(f"#rows [data-sort={key}]")
        known = [float(value) for value in column(opened, key) if value]
        assert known == sorted(known, reverse=True)
        assert all(column(opened, key)[: len(known)])  # unknown values come last
        opened.page.click(f"#rows [data-sort={key}]")
        assert [float(value) for value in column(opened, key) if value] == sorted(known)
    opened.page.focus("#rows [data-sort=name]")
    opened.page.keyboard.press("Enter")
    assert column(opened, "name")[0].startswith("org-0")
    assert opened.page.get_attribute("#rows th:first-child", "aria-sort") == "ascending"
    assert opened.complaints == []
    assert len(opened.requests) == 1


def test_the_rank_decides_the_figures_and_their_order(open_page) -> None:
    opened = open_page()
    opened.page.select_option("#rank", label="8")
    opened.page.click("#rows [data-sort=kept]")
    kept = [float(value.split()[0]) for value in column(opened, "kept") if value]

    assert kept == sorted(kept)
    first = opened.text("#rows tbody tr:first-child .at")
    opened.page.select_option("#rank", label=str(RANKS[-1]))
    assert opened.text("#rows tbody tr:first-child .at") != first


def test_the_filter_hides_other_names(open_page) -> None:
    opened = open_page()
    opened.page.fill("#filter", "model-01")

    assert all("Model-01" in name for name in column(opened, "name"))
    assert opened.text("#shown") == "10 of 60"


def test_the_map_by_pointer_and_by_keyboard(open_page) -> None:
    opened = open_page()
    opened.page.click("#map", position={"x": 3, "y": 300})
    assert "cosine" in opened.text("#pair")
    opened.page.focus("#map")
    for _ in range(80):
        opened.page.keyboard.press("ArrowUp")
    assert "cosine" not in opened.text("#pair")  # a finetune and itself, in the corner
    opened.page.keyboard.press("ArrowRight")
    assert "cosine" in opened.text("#pair")


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen(open_page, width: int) -> None:
    opened = open_page(width=width)

    assert opened.page.evaluate("document.documentElement.scrollWidth") == width
    box = opened.page.locator("#map").bounding_box()
    assert box["width"] == pytest.approx(box["height"], abs=2)
    assert box["width"] <= width - 30


def test_it_prints_and_reads_without_scripts(open_page) -> None:
    opened = open_page(java_script_enabled=False)
    assert "org-3--Model-003-12b-v4" in opened.text("#rows")
    assert open_page().page.pdf()[:4] == b"%PDF"


def test_the_map_follows_the_scheme_and_is_light_on_paper(open_page) -> None:
    opened = open_page(scheme="dark")
    corner = """() => {
        const map = document.querySelector("#map");
        return Math.max(...map.getContext("2d").getImageData(1, map.height - 2, 1, 1).data.slice(0, 3));
    }"""

    assert opened.page.evaluate(corner) < 100
    opened.page.emulate_media(media="print", color_scheme="dark")
    opened.wait_until(f"({corner})() > 200")
    opened.page.emulate_media(media="screen", color_scheme="light")
    assert opened.page.evaluate(corner) > 200
