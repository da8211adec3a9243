"""The page and its pictures on disk: each file whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from deltarank.errors import OutputError
from deltarank.report.drawing.draw import drawing_process, start_drawing
from deltarank.report.drawing.vega_bundle import prepare_vega_bundle
from deltarank.report.page.html import render_page
from deltarank.report.view.build import page_data
from deltarank.report.view.page import PageData
from deltarank.results import Results
from deltarank.system import write_bytes_atomically


@contextmanager
def report_process() -> Iterator[None]:
    """As `drawing_process`, for a report that this thread writes in the block: the Vega script is prepared too."""
    with drawing_process():
        prepare_vega_bundle()
        yield


def write_report(runs: Sequence[Results], folder: Path) -> tuple[Path, ...]:
    """Writes `report.html` and the PNGs into `folder`, over those of an earlier report.

    Everything is made before the first file is written; each is written beside its place and renamed.

    Raises:
        OutputError: the folder cannot be written, the disk is full, or nothing can be drawn here.
        ValueError: there is no run.
    """
    page = page_data(runs)
    with report_process():
        made = _made(page)
    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
        return tuple(_write(target / name, content) for name, content in made.items())
    except OSError as error:
        raise OutputError(
            f"cannot write the report into {target}: {error.strerror or error}.",
            cure="Give a folder that you may write to, on a disk with some megabytes free.",
            slug="output-unwritable",
        ) from error


def _made(page: PageData) -> dict[str, bytes]:
    """File name -> contents: the page is written while the pictures are drawn."""
    from deltarank.report.page.posters import pictures

    drawings = {name: start_drawing(picture) for name, picture in pictures(page).items()}
    made = {"report.html": render_page(page).encode("utf-8")}
    return made | {name: finished() for name, finished in drawings.items()}


def _write(path: Path, content: bytes) -> Path:
    write_bytes_atomically(path, content)
    return path
