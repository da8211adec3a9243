"""Renders what was found of two endpoints as one HTML file that needs no network and has no script."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from deltarank.errors import OutputError
from deltarank.report.endpoints.evidence_chart import evidence_chart
from deltarank.report.page.html import colours, page_style
from deltarank.report.page.policy import content_policy
from deltarank.report.view.text import escape_lines, unbroken
from deltarank.results import EndpointResults, capability_rows, escape, figure
from deltarank.system import user_path, write_text_atomically

if TYPE_CHECKING:
    from jinja2 import Environment


def endpoints_page(results: EndpointResults) -> str:
    """The page, as text."""
    from markupsafe import Markup

    found = results.endpoints
    style = colours() + page_style() + _resource("endpoints.css")
    alpha = float(results.settings.get("alpha") or 0.01)
    return (
        _environment()
        .get_template("endpoints.html")
        .render(
            results=results,
            found=found,
            sentences=[unbroken(escape(each)) for each in found.verdict.sentences],
            rows=capability_rows(found.a, found.b)[1:],
            charts=[(test, evidence_chart(test, alpha)) for test in found.tests if test.evidence],
            policy=content_policy([], style),
            style=Markup(style),
        )
    )


def write_endpoints_report(results: EndpointResults, folder: Path) -> tuple[Path, ...]:
    """Writes report.html into `folder`.

    Raises:
        OutputError: (slug "output-unwritable") the folder cannot be written.
    """
    page = endpoints_page(results)
    target = user_path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
        write_text_atomically(target / "report.html", page)
    except OSError as error:
        raise OutputError(
            f"Cannot write the report to {target}: {error.strerror or error}.",
            cure="Choose a folder that you may write to, on a disk with some free megabytes.",
            slug="output-unwritable",
        ) from error
    return (target / "report.html",)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("deltarank.report", "endpoints"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"figure": figure, "escaped": escape, "lines": escape_lines}
    return environment


def _resource(name: str) -> str:
    return files("deltarank.report").joinpath("endpoints", name).read_text(encoding="utf-8")
