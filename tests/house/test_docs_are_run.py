"""Every command and every snippet of the docs is run by a test, or says why not."""

from pathlib import Path

import pytest

from doc_blocks import ROOT, blocks_of

PAGES = ["README.md", "CONTRIBUTING.md", *sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "docs").rglob("*.md"))]
GENERATED = "docs/cli.md"
"""Usage lines, and examples that test_help.py parses with the commands' own parsers."""


def runners(page: str) -> list[Path]:
    """The tests that name the page, by its path or by its file."""
    names = [f'"{page}"', f'"{page.removeprefix("docs/")}"', f'"{Path(page).name}"']
    tests = (path for folder in ("end_to_end", "servers") for path in (ROOT / "tests" / folder).glob("test_*.py"))
    return [path for path in tests if any(each in path.read_text(encoding="utf-8") for each in names)]


@pytest.mark.parametrize("page", [page for page in PAGES if page != GENERATED])
def test_a_test_runs_the_blocks_of_the_page(page: str) -> None:
    waiting = [block for block in blocks_of(page) if block.can_run and block.reason is None]

    assert not waiting or runners(page), f"{page}: no test runs {waiting[0].text!r}"


def test_a_reason_is_given_only_where_something_would_run() -> None:
    idle = [block for page in PAGES for block in blocks_of(page) if block.reason and not block.can_run]

    assert idle == []
