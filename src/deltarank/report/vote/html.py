"""Renders the page of a blind test as one HTML file that needs no network.

The page knows nothing of the key but its hash. Each pair is sealed: whoever looks at the source reads no text before
its turn. That guards against spoilers, not against an attack: the page has to be able to open it.
"""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from importlib.resources import files
from itertools import count
from typing import TYPE_CHECKING, Any

from deltarank.report.page.html import colours
from deltarank.report.page.payload import embedded_json
from deltarank.report.page.policy import content_policy
from deltarank.results import Ballot, BallotPair, Question, escape

if TYPE_CHECKING:
    from jinja2 import Environment

_BLOCK = 512
"""Sealed pairs have a multiple of so many bytes, so that their sizes tell little."""


def vote_page(ballot: Ballot) -> str:
    """The page, as text."""
    from markupsafe import Markup

    style, script = colours() + _resource("vote.css"), _resource("vote.js")
    counts = {question.value: sum(pair.question is question for pair in ballot.pairs) for question in Question}
    return (
        _environment()
        .get_template("vote.html")
        .render(
            counts=counts,
            minutes=ballot.minutes,
            has_catch_pairs=ballot.has_catch_pairs,
            sampler=None if ballot.sampler is None else escape(ballot.sampler),
            key_sha256=ballot.key_sha256,
            tool_version=escape(ballot.tool_version),
            policy=content_policy([script], style),
            style=Markup(style),
            script=Markup(script),
            data=Markup(embedded_json(_data(ballot))),
        )
    )


def _data(ballot: Ballot) -> dict[str, Any]:
    return {
        "test": ballot.test,
        "key_sha256": ballot.key_sha256,
        "pairs": [
            {"id": pair.id, "question": pair.question.value, "sealed": seal(ballot.test, pair)} for pair in ballot.pairs
        ],
    }


def seal(test: str, pair: BallotPair) -> str:
    """The texts of a pair as JSON, padded, XORed with SHA-256(test:pair:0), SHA-256(test:pair:1), ..., in base64."""
    plain = json.dumps({"prompt": pair.prompt, "texts": pair.texts, "x": pair.x}).encode()
    plain += b" " * (-len(plain) % _BLOCK)
    stream = b""
    for block in count():
        if len(stream) >= len(plain):
            break
        stream += hashlib.sha256(f"{test}:{pair.id}:{block}".encode()).digest()
    return base64.b64encode(bytes(a ^ b for a, b in zip(plain, stream, strict=False))).decode()


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("deltarank.report", "vote"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _resource(name: str) -> str:
    return files("deltarank.report").joinpath("vote", name).read_text(encoding="utf-8")
