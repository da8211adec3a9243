"""Renders a page as one HTML file that needs no network.

The chart libraries come from vl_convert when a page is written; this package has no copy of them.
"""

from __future__ import annotations

from collections.abc import Sequence

from deltarank.report.document.render import COLOURS, PAGE_STYLE, render_document, resource
from deltarank.report.drawing.vega_bundle import vega_bundle
from deltarank.report.view.build import page_data
from deltarank.report.view.headline import headline_at, plain_text
from deltarank.report.view.page import PageData
from deltarank.report.view.text import NO_BREAK
from deltarank.results import Results


def page_html(runs: Sequence[Results]) -> str:
    """The page over these runs, as text.

    Raises:
        ValueError: there is no run.
    """
    return render_page(page_data(runs))


def render_page(page: PageData) -> str:
    """The page as text."""
    from deltarank.report.page.payload import TOKEN_STEPS, layer_groups, payload
    from deltarank.report.view.divergence_rows import largest_part

    styles, script = [COLOURS, PAGE_STYLE], resource("page/page.js")
    if page.outputs:
        styles, script = [*styles, "page/outputs.css"], resource("page/outputs.js") + script
    cells = [cell for run in page.runs for cell in run.cells]
    return render_document(
        "page/page.html",
        styles=styles,
        scripts=[vega_bundle(), script],
        data=payload(page),
        page=page,
        repeated=said_by_headlines(page),
        groups=layer_groups(page),
        has_change=any(run.energy for run in page.runs),
        has_unchanged=any(cell.unchanged for cell in cells),
        has_missing=any(None in cell.lost for cell in cells),
        token_steps=TOKEN_STEPS,
        top_part_kld=largest_part(page.outputs)[0],
        text_names={text.name for outputs in page.outputs for text in outputs.texts},
    )


def said_by_headlines(page: PageData) -> set[str]:
    """The headlines of the page and of each run at all ranks: a verdict need not repeat them."""
    of_runs = [headline_at(i, rank, [run]) for run in page.runs for i, rank in enumerate(page.ranks)]
    return {plain_text(headline).replace(NO_BREAK, " ") for headline in (*page.headlines, *of_runs)}
