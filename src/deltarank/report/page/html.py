"""PageData -> one HTML file that asks nothing of any network.

The libraries come out of vl_convert when a page is written; none is kept in this package. A content security policy
lets exactly the page's own scripts and styles run, by their hashes, and lets nothing be fetched.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from deltarank.report.charts.theme import RAMP
from deltarank.report.drawing.vega_bundle import vega_bundle
from deltarank.report.view.build import page_data
from deltarank.report.view.headline import headlines, plain
from deltarank.report.view.page import PageData
from deltarank.report.view.text import NO_BREAK, kept_percent, lost_percent, terse_percent, unbroken
from deltarank.results import Results, count, figure, percent

if TYPE_CHECKING:
    from jinja2 import Environment


def page_html(runs: Sequence[Results]) -> str:
    """The page over these runs, as text.

    Raises:
        ValueError: there is no run.
    """
    return render_page(page_data(runs))


def render_page(page: PageData) -> str:
    from markupsafe import Markup

    from deltarank.report.page.payload import embedded, layer_groups, payload

    style, library, script = _resource("page.css"), vega_bundle(), _resource("page.js")
    if page.spoken:
        style, script = style + _resource("outputs.css"), _resource("outputs.js") + script
    return (
        environment()
        .get_template("page.html")
        .render(
            page=page,
            told=sentences_told(page),
            groups=layer_groups(page),
            changed=any(run.energy for run in page.runs),
            signs={
                "same": any(cell.same for run in page.runs for cell in run.cells),
                "missing": any(None in cell.lost for run in page.runs for cell in run.cells),
            },
            policy=_policy([library, script], style),
            style=Markup(style),
            library=Markup(library),
            script=Markup(script),
            data=Markup(embedded(payload(page))),
            **_about_outputs(page),
        )
    )


def _about_outputs(page: PageData) -> dict[str, Any]:
    """What the outputs' part of the template needs; nothing for a page without outputs."""
    if not page.spoken:
        return {}
    from deltarank.report.page.outputs_payload import STEPS
    from deltarank.report.view.outputs_chart_rows import part_top
    from deltarank.report.view.outputs_tables import (
        HEADINGS,
        WRITING_HEADINGS,
        kept_table,
        logits_lines,
        notes_of,
        writing_lines,
    )

    return {
        "steps": [figure(step) for step in STEPS],
        "headings": HEADINGS,
        "writing_headings": WRITING_HEADINGS,
        "logits_lines": logits_lines,
        "notes_of": notes_of,
        "writing_lines": writing_lines,
        "kept_table": kept_table(page),
        "part_top": part_top(page)[0],
        "several_texts": len({text.name for run in page.runs if run.outputs for text in run.outputs.texts}) > 1,
    }


def sentences_told(page: PageData) -> set[str]:
    """What the page says of a run at one rank or another: a verdict need not say it again."""
    each = [headlines(page.ranks, [run]) for run in page.runs]
    return {plain(headline).replace(NO_BREAK, " ") for said in [page.headlines, *each] for headline in said}


@cache
def environment() -> Environment:
    """Templates with everything escaped, and the filters that round as all of deltarank does."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("deltarank.report", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "percent": lambda share: unbroken(percent(share)),
        "terse": terse_percent,
        "figure": figure,
        "count": count,
        "unbroken": unbroken,
        "kept": lambda loss: unbroken(kept_percent(loss)),
        "lost": lambda loss: unbroken(lost_percent(loss)),
        "remains": _remains,
    }
    made.globals["ramp"] = RAMP
    return made


def _remains(lost: float | None) -> str:
    """The energy kept where this share is lost, for a column headed "%"."""
    if lost and 1.0 - lost == 1.0:
        return ">99.9"
    return terse_percent(None if lost is None else 1.0 - lost)


def _resource(name: str) -> str:
    return files("deltarank.report").joinpath("page", name).read_text(encoding="utf-8")


def _policy(scripts: Sequence[str], style: str) -> str:
    """Nothing may be fetched, and only what was written here may run."""
    allowed: dict[str, Any] = {
        "default-src": "'none'",
        "script-src": " ".join(_hash(script) for script in scripts),
        "style-src": _hash(style),
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in allowed.items())


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
