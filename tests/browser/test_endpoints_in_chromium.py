"""The page on two endpoints in a real Chromium: verdict, evidence, probe, answers; at both widths, offline, inert."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from chromium import Opened

from commands import RunCommand
from deltarank.results import EndpointResults
from fake_endpoint import FakeEndpoint, TinyModel, serving

pytestmark = pytest.mark.browser

HOSTILE = "<img src=x onerror=window.struck=1><script>window.struck=1</script>\u202e{{7*7}}"


def run_between(command: RunCommand, folder: Path, a: FakeEndpoint, b: FakeEndpoint) -> Path:
    with serving(a, b):
        done = command("endpoints", a.reference, b.reference, "-o", folder, "--seed", 5, "--alpha", 0.05)
    assert done.code == 0
    return folder / "report.html"


@pytest.fixture
def page_of(command: RunCommand, tmp_path: Path) -> Callable[..., Path]:
    """The page that the command writes on two endpoints."""
    return lambda a, b: run_between(command, tmp_path / "run", a, b)


@pytest.fixture
def open_page(browser) -> Iterator[Callable[..., Opened]]:
    contexts = []

    def opened(file: Path, *, width: int = 1280, scheme: str = "light") -> Opened:
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
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


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_a_difference_is_told_in_words_and_drawn(page_of, open_page, tmp_path, width: int, scheme: str) -> None:
    file = page_of(FakeEndpoint(), FakeEndpoint(model=TinyModel(change=0.4)))
    opened = open_page(file, width=width, scheme=scheme)
    (headline, *_) = EndpointResults.load(tmp_path / "run").verdict.sentences

    assert "do not answer alike" in headline
    assert headline in " ".join(opened.text("body").split())
    assert opened.page.locator("svg").count() >= 1
    assert opened.page.locator("table").count() >= 1
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
    assert opened.complaints == []
    assert opened.requests == [file.as_uri()]


def test_hostile_answers_stay_text(page_of, open_page) -> None:
    opened = open_page(page_of(FakeEndpoint(), FakeEndpoint(text=HOSTILE)), width=390)

    assert "<script>window.struck=1</script>" in opened.text("body")
    assert opened.page.evaluate("window.struck") is None
    assert opened.page.locator("img").count() == 0
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= 390
    assert opened.complaints == []
