"""The drawing process: reads a line of Vega-Lite from stdin, answers with a line of SVG on stdout, until stdin ends.

A line with null requests the Vega script of the page. `draw.py` runs this file by its path: it imports nothing of
deltarank, to be ready soon.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

_WARM_UP = {
    "data": {"values": [{"name": "a", "size": 1}]},
    "mark": "bar",
    "encoding": {"x": {"field": "size", "type": "quantitative"}, "y": {"field": "name"}},
}
"""Drawn first, so that everything is loaded when a request comes."""


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process ends this one
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # nothing printed may mix with the answers
    _answer(_WARM_UP)
    for line in sys.stdin.buffer:
        answers.write(json.dumps(_answer(json.loads(line))).encode() + b"\n")
        answers.flush()


def _answer(chart: Any) -> str | None:
    """None for an invalid chart: the parent process draws it again and reports why."""
    import vl_convert

    try:
        if chart is None:
            return str(vl_convert.javascript_bundle(None))  # type: ignore[arg-type]  # None is its default
        return str(vl_convert.vegalite_to_svg(chart, allowed_base_urls=[]))
    except ValueError:
        return None


if __name__ == "__main__":
    main()
