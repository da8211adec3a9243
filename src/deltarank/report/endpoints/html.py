"""Renders what was found of two endpoints as one HTML file that needs no network and has no script."""

from __future__ import annotations

import math
from pathlib import Path

from deltarank.report.document.render import COLOURS, PAGE_STYLE, render_document
from deltarank.report.document.write import write_files
from deltarank.report.endpoints.evidence_chart import evidence_chart, identification_chart
from deltarank.report.view.text import unbroken
from deltarank.results import EndpointResults, ServedCandidate, capability_rows, escape, figure, percent, power_of_ten


def endpoints_page(results: EndpointResults) -> str:
    """The page, as text."""
    found = results.endpoints
    alpha = float(results.settings.get("alpha") or 0.01)
    return render_document(
        "endpoints/endpoints.html",
        styles=[COLOURS, PAGE_STYLE, "endpoints/endpoints.css"],
        results=results,
        found=found,
        title=" and ".join(escape(each.model) for each in found.endpoints),
        letters="AB"[: len(found.endpoints)],
        sentences=[unbroken(escape(each)) for each in (*found.verdict.sentences, *results.notes)],
        rows=capability_rows(*found.endpoints)[1:],
        identifications=[
            (letter, each, identification_chart(each), [_row(candidate) for candidate in each.candidates])
            for letter, each in found.identifications.items()
            if each.evidence
        ],
        charts=[(test, evidence_chart(test, alpha)) for test in found.tests if test.evidence],
    )


def _row(candidate: ServedCandidate) -> dict[str, str]:
    return {
        "name": unbroken(escape(candidate.name)),
        "log_likelihood": f"{candidate.log_likelihood:,.1f}",
        "posterior": percent(candidate.posterior),
        "kld": figure(candidate.kld, unknown="-"),
        "nearest": unbroken(escape(candidate.nearest or "-")),
        "tokens": "no number" if candidate.tokens_needed is None else figure(math.ceil(candidate.tokens_needed)),
        "ratio": "-" if candidate.nearest_log_e_value is None else power_of_ten(candidate.nearest_log_e_value),
        "state": "excluded" if candidate.excluded else "left",
    }


def write_endpoints_report(results: EndpointResults, folder: Path) -> tuple[Path, ...]:
    """Writes report.html into `folder`.

    Raises:
        OutputError: (slug "output-unwritable") the folder cannot be written.
    """
    return write_files({"report.html": endpoints_page(results).encode("utf-8")}, folder)
