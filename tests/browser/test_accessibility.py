"""Every kind of page: axe finds no violation, nothing but a table's own box scrolls sideways, and all fits on paper."""

from importlib.resources import files

import every_page
import pytest
from every_page import PAGES

pytestmark = pytest.mark.browser

NARROW, WIDE = 390, 1280
PAPER = 703
"""A4 with margins of 12 mm, in pixels of CSS."""

SMALLEST_TYPE = 8
"""Of print, in pixels of CSS: 6 pt."""

LOOKS = [
    (NARROW, "dark"),
    (WIDE, "light"),
    pytest.param(NARROW, "light", marks=pytest.mark.slow),
    pytest.param(WIDE, "dark", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module")
def page_files(tmp_path_factory):
    """Writes a kind of page once."""
    folder = tmp_path_factory.mktemp("pages")

    def file(kind: str):
        path = folder / f"{kind}.html"
        if not path.exists():
            path.write_text(every_page.vote(folder) if kind == "vote" else PAGES[kind](), encoding="utf-8")
        return path

    return file


@pytest.fixture(scope="module")
def axe() -> str:
    pytest.importorskip("axe_playwright_python")
    return files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")


@pytest.fixture
def opened(new_page, page_files):
    def open_page(kind: str, width: int, scheme: str):
        page = new_page(width=width, scheme=scheme)
        page.goto(page_files(kind).as_uri())
        if page.locator("#rank-selector").count():
            page.wait_for_selector("html[data-ready=yes]")
        return page

    return open_page


def violations(page, axe: str) -> list[str]:
    page.evaluate(axe)
    # Charts are hidden from assistive technology, and axe reads thousands of their parts to find that out.
    page.evaluate("document.querySelectorAll('svg[aria-hidden=true]').forEach(chart => chart.replaceChildren())")
    found = page.evaluate("axe.run({resultTypes: ['violations']})")["violations"]
    return [f"{each['id']}: {each['help']}: {[node['html'][:200] for node in each['nodes']]}" for each in found]


@pytest.mark.parametrize("kind", [*PAGES, "vote"])
@pytest.mark.parametrize(("width", "scheme"), LOOKS)
def test_axe_finds_no_violation_and_the_page_does_not_scroll_sideways(opened, axe, kind, width, scheme):
    page = opened(kind, width, scheme)

    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert violations(page, axe) == []


def test_no_screen_of_a_blind_test_has_a_violation(opened, axe):
    page = opened("vote", NARROW, "light")
    page.click("#begin")
    assert violations(page, axe) == []
    page.click("#pause")
    assert violations(page, axe) == []


@pytest.mark.parametrize("kind", PAGES)
def test_every_table_scrolls_in_a_box_that_the_keyboard_reaches_and_fits_on_paper(opened, kind):
    page = opened(kind, NARROW, "light")
    boxes = "[...document.querySelectorAll('table')].map(table => table.closest('.scroll[tabindex=\"0\"][aria-label]'))"

    assert page.evaluate(f"{boxes}.every(Boolean)")
    assert page.evaluate(f"{boxes}.every(box => box.getBoundingClientRect().right <= innerWidth)")

    page.emulate_media(media="print")
    page.set_viewport_size({"width": PAPER, "height": 1000})
    tables = "[...document.querySelectorAll('table')].filter(table => !table.closest('details'))"
    assert max(page.evaluate(f"{tables}.map(table => Math.round(table.getBoundingClientRect().right))")) <= PAPER
    sizes = f"{tables}.flatMap(table => [...table.querySelectorAll('th, td')])"
    sizes += ".map(cell => parseFloat(getComputedStyle(cell).fontSize))"
    assert min(page.evaluate(sizes)) >= SMALLEST_TYPE
    parts = "[...document.querySelectorAll('td .whole')].map(number => number.getClientRects().length)"
    assert max(page.evaluate(parts), default=1) < 2  # no number is broken at its exponent
    lines = "cell => cell.getBoundingClientRect().height / parseFloat(getComputedStyle(cell).lineHeight)"
    heights = page.evaluate(f"[...document.querySelectorAll('tbody th, td.name')].map({lines})")
    assert max(heights) < 6
    # Chromium paints a button only on the first page of a table.
    displays = "[...document.querySelectorAll('th button')].map(button => getComputedStyle(button).display)"
    assert set(page.evaluate(displays)) <= {"contents"}


@pytest.mark.parametrize("kind", ["outputs", "many-runs"])
def test_the_labels_of_charts_can_be_read_on_paper(opened, kind):
    """A chart that is wider than the paper is scaled down with its labels."""
    page = opened(kind, WIDE, "light")

    sizes = """paper => [...document.querySelectorAll('[data-chart] svg')].flatMap(chart => {
        const scale = Math.min(1, paper / chart.getBoundingClientRect().width);
        return [...chart.querySelectorAll('text')].map(label => scale * parseFloat(getComputedStyle(label).fontSize));
    })"""
    assert min(page.evaluate(sizes, PAPER)) >= SMALLEST_TYPE
