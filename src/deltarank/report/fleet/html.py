"""Renders the page of a fleet as one HTML file that needs no network and no chart library."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltarank.errors import OutputError
from deltarank.report.page.html import colours, page_style
from deltarank.report.page.payload import embedded_json
from deltarank.report.page.policy import content_policy
from deltarank.report.view.fleet import FleetPage, fleet_page
from deltarank.report.view.text import unbroken
from deltarank.results import Fleet
from deltarank.system import user_path, write_bytes_atomically

if TYPE_CHECKING:
    from jinja2 import Environment

MOST_LABELLED = 40
"""Of more finetunes, the map has no names at its rows: they would not be readable."""


def write_fleet_page(fleet: Fleet, folder: Path) -> Path:
    """Writes `fleet.html` into the folder of the fleet, with links to the pages that lie in those of its finetunes.

    Raises:
        OutputError: the file cannot be written.
    """
    target = user_path(folder)
    pages = {each.name for each in fleet.finetunes if each.run and (target / each.run / "report.html").is_file()}
    try:
        write_bytes_atomically(target / "fleet.html", fleet_html(fleet, pages).encode("utf-8"))
    except OSError as error:
        raise OutputError(
            f"Cannot write the page to {target}: {error.strerror or error}.",
            cure="Choose a folder that you may write to, on a disk with some free megabytes.",
            slug="output-unwritable",
        ) from error
    return target / "fleet.html"


def fleet_html(fleet: Fleet, pages: set[str] | frozenset[str] = frozenset()) -> str:
    """The page as text.

    Args:
        pages: the names of the finetunes whose folders have a page.
    """
    from markupsafe import Markup

    page = fleet_page(fleet, pages)
    style, script = colours() + page_style() + _resource("fleet.css"), _resource("fleet.js")
    return (
        _environment()
        .get_template("fleet.html")
        .render(
            page=page,
            are_labelled=len(page.map_names) <= MOST_LABELLED,
            policy=content_policy([script], style),
            style=Markup(style),
            script=Markup(script),
            data=Markup(embedded_json(_data(page))),
        )
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


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("deltarank.report", "fleet"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["unbroken"] = unbroken
    return environment


def _resource(name: str) -> str:
    return files("deltarank.report").joinpath("fleet", name).read_text(encoding="utf-8")
