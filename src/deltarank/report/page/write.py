"""Writes the page and its pictures: each file completely or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from deltarank.report.document.write import write_files
from deltarank.report.drawing.draw import drawing_process, start_drawing
from deltarank.report.drawing.vega_bundle import prepare_vega_bundle
from deltarank.report.page.html import render_page
from deltarank.report.view.build import page_data
from deltarank.report.view.page import PageData
from deltarank.results import Results

PAGE = "report.html"


@contextmanager
def report_process() -> Iterator[None]:
    """As `drawing_process`, for a report that this thread writes in the block: the Vega script is prepared too."""
    with drawing_process():
        prepare_vega_bundle()
        yield


def write_report(runs: Sequence[Results], folder: Path) -> tuple[Path, ...]:
    """Writes `report.html` and the PNGs into `folder`, over those of an earlier report.

    Everything is rendered before the first file is written.

    Raises:
        OutputError: the folder cannot be written, the disk is full, or nothing can be drawn here.
        ValueError: there is no run.
    """
    page = page_data(runs)
    with report_process():
        contents = _render(page)
    return write_files(contents, folder)


def write_page(runs: Sequence[Results], folder: Path) -> Path:
    """Writes `report.html` without the PNGs, which take seconds to draw; otherwise as `write_report`."""
    (page,) = write_files({PAGE: render_page(page_data(runs)).encode("utf-8")}, folder)
    return page


def _render(page: PageData) -> dict[str, bytes]:
    """File name -> content. The page is rendered while the drawing process draws the pictures."""
    from deltarank.report.page.posters import posters

    drawings = {name: start_drawing(poster) for name, poster in posters(page).items()}
    return {
        PAGE: render_page(page).encode("utf-8"),
        **{name: finish() for name, finish in drawings.items()},
    }
