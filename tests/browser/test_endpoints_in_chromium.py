"""The page on two endpoints in a real Chromium: verdict, evidence, probe, answers; at both widths, offline, inert."""

from collections.abc import Callable
from pathlib import Path

import pytest

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


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_a_difference_is_told_in_words_and_drawn(page_of, open_file, tmp_path, width: int, scheme: str) -> None:
    file = page_of(FakeEndpoint(), FakeEndpoint(model=TinyModel(change=0.4)))
    opened = open_file(file, width=width, scheme=scheme)
    (headline, *_) = EndpointResults.load(tmp_path / "run").verdict.sentences

    assert "do not answer alike" in headline
    assert headline in " ".join(opened.text("body").split())
    assert opened.page.locator("svg").count() >= 1
    assert opened.page.locator("table").count() >= 1
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
    assert opened.complaints == []
    assert opened.requests == [file.as_uri()]


def test_hostile_answers_stay_text(page_of, open_file) -> None:
    opened = open_file(page_of(FakeEndpoint(), FakeEndpoint(text=HOSTILE)), width=390)

    assert "<script>window.struck=1</script>" in opened.text("body")
    assert opened.page.evaluate("window.struck") is None
    assert opened.page.locator("img").count() == 0
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= 390
    assert opened.complaints == []
