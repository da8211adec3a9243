"""Renders what was found of two endpoints as one HTML file that needs no network and has no script."""

from __future__ import annotations

from pathlib import Path

from deltarank.report.document.render import COLOURS, PAGE_STYLE, render_document
from deltarank.report.document.write import write_files
from deltarank.report.endpoints.evidence_chart import evidence_chart
from deltarank.report.view.text import unbroken
from deltarank.results import EndpointResults, capability_rows, escape


def endpoints_page(results: EndpointResults) -> str:
    """The page, as text."""
    found = results.endpoints
    alpha = float(results.settings.get("alpha") or 0.01)
    return render_document(
        "endpoints/endpoints.html",
        styles=[COLOURS, PAGE_STYLE, "endpoints/endpoints.css"],
        results=results,
        found=found,
        sentences=[unbroken(escape(each)) for each in found.verdict.sentences],
        rows=capability_rows(found.a, found.b)[1:],
        charts=[(test, evidence_chart(test, alpha)) for test in found.tests if test.evidence],
    )


def write_endpoints_report(results: EndpointResults, folder: Path) -> tuple[Path, ...]:
    """Writes report.html into `folder`.

    Raises:
        OutputError: (slug "output-unwritable") the folder cannot be written.
    """
    return write_files({"report.html": endpoints_page(results).encode("utf-8")}, folder)
