"""Draws what comes in: a line of Vega-Lite on stdin, a line with its SVG on stdout, until stdin ends.

A line that says null asks for the script that the page needs. `draw.py` starts this as a file of its own, so
that it is ready soon: nothing of deltarank is imported here.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

FIRST = {
    "data": {"values": [{"name": "a", "size": 1}]},
    "mark": "bar",
    "encoding": {"x": {"field": "size", "type": "quantitative"}, "y": {"field": "name"}},
}
"""Drawn for nobody: what has to be loaded is loaded then."""


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started this ends it
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # nothing that is printed may stand among the answers
    _answer(FIRST)
    for line in sys.stdin.buffer:
        answers.write(json.dumps(_answer(json.loads(line))).encode() + b"\n")
        answers.flush()


def _answer(chart: Any) -> str | None:
    """None where it cannot be had: whoever asked tries it again and hears why."""
    import vl_convert

    try:
        if chart is None:
            return str(vl_convert.javascript_bundle(None))  # type: ignore[arg-type]  # None is its default
        return str(vl_convert.vegalite_to_svg(chart, allowed_base_urls=[]))
    except ValueError:
        return None


if __name__ == "__main__":
    main()
