"""Renders the page of a blind test as one HTML file that needs no network.

The page knows nothing of the key but its hash. Each pair is sealed: whoever looks at the source reads no text before
its turn. That guards against spoilers, not against an attack: the page has to be able to open it.
"""

from __future__ import annotations

import base64
import hashlib
import json
from itertools import count
from typing import Any

from deltarank.report.document.render import COLOURS, render_document, resource
from deltarank.results import Ballot, BallotPair, Question, escape

_BLOCK = 512
"""Sealed pairs have a multiple of so many bytes, so that their sizes tell little."""


def vote_page(ballot: Ballot) -> str:
    """The page, as text."""
    counts = {question.value: sum(pair.question is question for pair in ballot.pairs) for question in Question}
    return render_document(
        "vote/vote.html",
        styles=[COLOURS, "vote/vote.css"],
        scripts=[resource("vote/vote.js")],
        data=_data(ballot),
        counts=counts,
        minutes=ballot.minutes,
        has_catch_pairs=ballot.has_catch_pairs,
        sampler=None if ballot.sampler is None else escape(ballot.sampler),
        key_sha256=ballot.key_sha256,
        tool_version=escape(ballot.tool_version),
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
