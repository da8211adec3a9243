"""Renders a template as one HTML file with its styles, scripts and data in it.

A content security policy allows these scripts and styles by their hashes, and no requests.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from deltarank.report.document.policy import content_policy
from deltarank.report.view.text import escape_lines, unbroken
from deltarank.results import escape, figure, percent, slot_sentence

if TYPE_CHECKING:
    from jinja2 import Environment

COLOURS = "document/colours.css"
"""The colours of all pages, light and dark."""

PAGE_STYLE = "document/page.css"
"""The style of the pages about results."""


def render_document(
    template: str, *, styles: Sequence[str], scripts: Sequence[str] = (), data: Any = None, **context: Any
) -> str:
    """The page as text.

    Args:
        template: the path of a template in this room, such as "fleet/fleet.html"; `styles` likewise.
        scripts: their texts, in their order.
        data: what the scripts read, as JSON.
        context: what the template reads.
    """
    from markupsafe import Markup

    style = "".join(resource(path) for path in styles)
    return (
        _environment()
        .get_template(template)
        .render(
            **context,
            policy=content_policy(scripts, style),
            style=Markup(style),
            scripts=[Markup(script) for script in scripts],
            data=Markup(embedded_json(data)),
        )
    )


def resource(path: str) -> str:
    """The text of a file of this room: "fleet/fleet.js"."""
    return files("deltarank.report").joinpath(*path.split("/")).read_text(encoding="utf-8")


def embedded_json(data: Any) -> str:
    """JSON for a script element: nothing in it can end the element or start markup."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


@cache
def _environment() -> Environment:
    """Templates that escape everything, with filters that round as the rest of deltarank does."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("deltarank.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Callable[..., str]] = {
        "slot_sentence": slot_sentence,
        "percent": lambda share: unbroken(percent(share)),
        "figure": figure,
        "unbroken": unbroken,
        "cell": _cell,
        "escaped": escape,
        "lines": escape_lines,
    }
    environment.filters |= filters
    return environment


def _cell(text: str) -> str:
    """The text of a cell, in which browsers break no number after the hyphen of its exponent: 2.3e-6."""
    from markupsafe import Markup

    return Markup(re.sub(r"\S*\de-\d+", r'<span class="whole">\g<0></span>', str(Markup.escape(unbroken(text)))))
