"""A browser for these tests, and what opens a page in it."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[1] / "unit" / "report"))

from chromium import CHROMIUM, QUIET, Opened

from deltarank.report import page_html


@pytest.fixture(scope="package")
def browser() -> Iterator:
    """One for all tests of this folder, which is a package for that. Playwright's event loop runs until it is closed,
    and nothing else could run one meanwhile."""
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here")
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield running
        running.close()


@pytest.fixture
def open_file(browser) -> Iterator[Callable[..., Opened]]:
    """Opens a file, and keeps what its page asks for and complains about."""
    contexts = []

    def opened(file: Path, *, width: int = 1280, scheme: str = "light", **settings) -> Opened:
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, **settings)
        contexts.append(context)
        made = Opened(context.new_page())
        made.page.on("request", lambda request: made.requests.append(request.url))
        made.page.on("console", lambda message: made.complaints.append(message.text))
        made.page.on("pageerror", lambda error: made.complaints.append(str(error)))
        made.page.goto(file.as_uri())
        return made

    yield opened
    for context in contexts:
        context.close()


@pytest.fixture
def show(browser, tmp_path) -> Iterator[Callable[..., Opened]]:
    contexts = []

    def opened(runs, *, width: int = 1280, scheme: str = "light", **settings) -> Opened:
        file = tmp_path / "report.html"
        file.write_text(page_html(runs), encoding="utf-8")
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, **settings)
        contexts.append(context)
        made = Opened(context.new_page())
        own = file.as_uri()

        def passed(route) -> None:
            made.requests.append(route.request.url)
            if route.request.url.split("#")[0] == own:
                route.continue_()
            else:
                route.abort()

        context.route("**/*", passed)
        made.page.on("console", lambda message: made.complaints.append(message.text))
        made.page.on("pageerror", lambda error: made.complaints.append(str(error)))
        made.page.goto(own)
        if settings.get("java_script_enabled", True):
            made.settle()
        made.own = own
        return made

    yield opened
    for context in contexts:
        context.close()
