"""Renders a page as one HTML file that needs no network.

The chart libraries come from vl_convert when a page is written; this package has no copy of them. A content security
policy allows the page's own scripts and styles by their hashes, and no requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from deltarank.report.drawing.vega_bundle import vega_bundle
from deltarank.report.page.policy import content_policy
from deltarank.report.view.build import page_data
from deltarank.report.view.headline import headline_at, plain_text
from deltarank.report.view.page import PageData
from deltarank.report.view.text import NO_BREAK, unbroken
from deltarank.results import Results, figure, percent, slot_sentence

if TYPE_CHECKING:
    from jinja2 import Environment


def page_html(runs: Sequence[Results]) -> str:
    """The page over these runs, as text.

    Raises:
        ValueError: there is no run.
    """
    return render_page(page_data(runs))


def render_page(page: PageData) -> str:
    """The page as text."""
    from markupsafe import Markup

    from deltarank.report.page.payload import TOKEN_STEPS, embedded_json, layer_groups, payload
    from deltarank.report.view.divergence_rows import largest_part

    style, library, script = colours() + _resource("page.css"), vega_bundle(), _resource("page.js")
    if page.outputs:
        style, script = style + _resource("outputs.css"), _resource("outputs.js") + script
    cells = [cell for run in page.runs for cell in run.cells]
    return (
        _environment()
        .get_template("page.html")
        .render(
            page=page,
            repeated=said_by_headlines(page),
            groups=layer_groups(page),
            has_change=any(run.energy for run in page.runs),
            has_unchanged=any(cell.unchanged for cell in cells),
            has_missing=any(None in cell.lost for cell in cells),
            token_steps=TOKEN_STEPS,
            top_part_kld=largest_part(page.outputs)[0],
            text_names={text.name for outputs in page.outputs for text in outputs.texts},
            policy=content_policy([library, script], style),
            style=Markup(style),
            library=Markup(library),
            script=Markup(script),
            data=Markup(embedded_json(payload(page))),
        )
    )


def said_by_headlines(page: PageData) -> set[str]:
    """The headlines of the page and of each run at all ranks: a verdict need not repeat them."""
    of_runs = [headline_at(i, rank, [run]) for run in page.runs for i, rank in enumerate(page.ranks)]
    return {plain_text(headline).replace(NO_BREAK, " ") for headline in (*page.headlines, *of_runs)}


@cache
def _environment() -> Environment:
    """Templates that escape everything, with filters that round as the rest of deltarank does."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("deltarank.report", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "slot_sentence": slot_sentence,
        "percent": lambda share: unbroken(percent(share)),
        "figure": figure,
        "unbroken": unbroken,
    }
    return environment


def colours() -> str:
    """The style sheet with the colours of all pages, light and dark."""
    return _resource("colours.css")


def page_style() -> str:
    """The style sheet that the pages of runs share."""
    return _resource("page.css")


def _resource(name: str) -> str:
    return files("deltarank.report").joinpath("page", name).read_text(encoding="utf-8")
