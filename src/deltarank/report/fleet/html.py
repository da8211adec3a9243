"""Renders the page of a fleet as one HTML file that needs no network and no chart library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deltarank.report.document.render import COLOURS, PAGE_STYLE, render_document, resource
from deltarank.report.document.write import write_files
from deltarank.report.view.fleet import FleetPage, fleet_page
from deltarank.results import Fleet
from deltarank.system import user_path

MOST_LABELLED = 40
"""Of more finetunes, the map has no names at its rows: they would not be readable."""


def write_fleet_page(fleet: Fleet, folder: Path) -> Path:
    """Writes `fleet.html` into the folder of the fleet, with links to the pages that lie in those of its finetunes.

    Raises:
        OutputError: the file cannot be written.
    """
    target = user_path(folder)
    pages = {each.name for each in fleet.finetunes if each.run and (target / each.run / "report.html").is_file()}
    (page,) = write_files({"fleet.html": fleet_html(fleet, pages).encode("utf-8")}, target)
    return page


def fleet_html(fleet: Fleet, pages: set[str] | frozenset[str] = frozenset()) -> str:
    """The page as text.

    Args:
        pages: the names of the finetunes whose folders have a page.
    """
    page = fleet_page(fleet, pages)
    return render_document(
        "fleet/fleet.html",
        styles=[COLOURS, PAGE_STYLE, "fleet/fleet.css"],
        scripts=[resource("fleet/fleet.js")],
        data=_data(page),
        page=page,
        are_labelled=len(page.map_names) <= MOST_LABELLED,
    )


def _data(page: FleetPage) -> dict[str, Any]:
    """What the script needs: the texts of the column of a rank, and the cosines of the map, in percent."""
    kinship = page.kinship
    return {
        "ranks": page.ranks,
        "kept": [[bar.text for bar in row.bars] for row in page.rows],
        "names": page.map_names,
        "cosines": [[round(100 * cosine, 1) for cosine in row] for row in kinship.cosines] if kinship else [],
    }
