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


@pytest.fixture(scope="package")
def tab(browser) -> Iterator:
    """A page into which one test after another loads its own: a new one each time takes three times as long."""
    with browser.new_context() as context:
        yield context.new_page()


@pytest.fixture
def new_page(browser, tab) -> Iterator[Callable]:
    """An empty page of this width and colour scheme: the tab, or one of its own if it has other settings, or a script
    that runs first."""
    contexts = []

    def page(*, width: int = 1280, scheme: str = "light", first: str = "", **settings):
        if first or settings:
            context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, **settings)
            contexts.append(context)
            context.add_init_script(first)
            return context.new_page()
        clear(tab)
        tab.set_viewport_size({"width": width, "height": 800})
        tab.emulate_media(color_scheme=scheme, media="screen")
        return tab

    yield page
    for context in contexts:
        context.close()
    clear(tab)


def clear(tab) -> None:
    """Leaves nothing of what was loaded or kept, and the pointer in the corner."""
    for other in tab.context.pages:
        if other is not tab:
            other.close()
    tab.unroute_all()
    tab.goto("about:blank")
    session = tab.context.new_cdp_session(tab)
    session.send("Storage.clearDataForOrigin", {"origin": "file:///", "storageTypes": "all"})
    session.detach()
    tab.mouse.move(0, 0)


@pytest.fixture
def listen(tab) -> Iterator[Callable]:
    """Calls a function at each event of a page, until the test ends."""
    listened = []

    def on(page, event: str, heard: Callable) -> None:
        page.on(event, heard)
        if page is tab:
            listened.append((event, heard))

    yield on
    for event, heard in listened:
        tab.remove_listener(event, heard)


@pytest.fixture
def empty_page(new_page, listen) -> Callable[..., Opened]:
    """An empty page, with what it will complain about."""

    def opened(**settings) -> Opened:
        made = Opened(new_page(**settings))
        listen(made.page, "console", lambda message: made.complaints.append(message.text))
        listen(made.page, "pageerror", lambda error: made.complaints.append(str(error)))
        return made

    return opened


@pytest.fixture
def open_file(empty_page, listen) -> Callable[..., Opened]:
    """Opens a file, and keeps what its page asks for and complains about."""

    def opened(file: Path, **settings) -> Opened:
        made = empty_page(**settings)
        listen(made.page, "request", lambda request: made.requests.append(request.url))
        made.page.goto(file.as_uri())
        return made

    return opened


@pytest.fixture
def show(empty_page, tmp_path) -> Callable[..., Opened]:
    def opened(runs, **settings) -> Opened:
        file = tmp_path / "report.html"
        file.write_text(page_html(runs), encoding="utf-8")
        made = empty_page(**settings)
        own = file.as_uri()

        def passed(route) -> None:
            made.requests.append(route.request.url)
            if route.request.url.split("#")[0] == own:
                route.continue_()
            else:
                route.abort()

        made.page.route("**/*", passed)
        made.page.goto(own)
        if settings.get("java_script_enabled", True):
            made.settle()
        made.own = own
        return made

    return opened
