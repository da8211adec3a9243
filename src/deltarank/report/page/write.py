"""Writes the page and its pictures: each file completely or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from deltarank.errors import OutputError
from deltarank.report.drawing.draw import drawing_process, start_drawing
from deltarank.report.drawing.vega_bundle import prepare_vega_bundle
from deltarank.report.page.html import render_page
from deltarank.report.view.build import page_data
from deltarank.report.view.page import PageData
from deltarank.results import Results
from deltarank.system import user_path, write_bytes_atomically

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
    return _write(contents, folder)


def write_page(runs: Sequence[Results], folder: Path) -> Path:
    """Writes `report.html` without the PNGs, which take seconds to draw; otherwise as `write_report`."""
    (page,) = _write({PAGE: render_page(page_data(runs)).encode("utf-8")}, folder)
    return page


def _write(contents: Mapping[str, bytes], folder: Path) -> tuple[Path, ...]:
    target = user_path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            write_bytes_atomically(target / name, content)
    except OSError as error:
        raise OutputError(
            f"Cannot write the report to {target}: {error.strerror or error}.",
            cure="Choose a folder that you may write to, on a disk with some free megabytes.",
            slug="output-unwritable",
        ) from error
    return tuple(target / name for name in contents)


def _render(page: PageData) -> dict[str, bytes]:
    """File name -> content. The page is rendered while the drawing process draws the pictures."""
    from deltarank.report.page.posters import posters

    drawings = {name: start_drawing(poster) for name, poster in posters(page).items()}
    return {
        PAGE: render_page(page).encode("utf-8"),
        **{name: finish() for name, finish in drawings.items()},
    }
