"""A run as it shows itself in a notebook: a small fragment without script, style sheet or chart."""

from __future__ import annotations

from deltarank.report.page.html import environment, sentences_told
from deltarank.report.view.build import page_data
from deltarank.report.view.chart_rows import whole_lost
from deltarank.results import Results


def notebook_html(results: Results) -> str:
    """The sentence, the verdict, a table of the energy kept by module and rank, and what was left out."""
    page = page_data([results])
    run = page.runs[0]
    return (
        environment()
        .get_template("notebook.html")
        .render(page=page, run=run, whole=whole_lost(run), told=sentences_told(page))
    )
