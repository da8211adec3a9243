"""What the page shows of a blind test: the sentences, and a row for each voter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deltarank.report.view.table import Table, TableRow
from deltarank.report.view.text import label
from deltarank.results import BlindScore, VoterScore, escape

MOST_VOTERS = 100

_HEADINGS = (
    "",
    "right",
    "luck does as well in",
    "e-value",
    "95 % interval",
    "sure pairs right",
    "one model twice right",
    "liked better",
)


@dataclass(frozen=True)
class BlindView:
    """A test. `title` tells several tests of a run apart. `key_sha256` is the hash that the page of the test showed."""

    title: str
    sentences: tuple[str, ...]
    table: Table
    notes: tuple[str, ...]
    key_sha256: str


def blind_views(scores: Sequence[BlindScore]) -> tuple[BlindView, ...]:
    """The tests of a run, in the order in which they were scored."""
    return tuple(
        BlindView(
            title=f"{label(score.candidate)} against {label(score.reference)}, scored on {escape(score.created[:10])}",
            sentences=tuple(escape(sentence) for sentence in score.sentences),
            table=_table(score),
            notes=tuple(escape(note) for note in score.notes),
            key_sha256=escape(score.key_sha256),
        )
        for score in scores
    )


def _table(score: BlindScore) -> Table:
    people = tuple(map(_row, score.voters[:MOST_VOTERS]))
    together = (_row(score.together),) if score.together else ()
    caption = f"Liked better: {label(score.reference)} : {label(score.candidate)} : neither"
    return Table(_HEADINGS, tuple(filter(None, (people, together))), caption)


def _row(voter: VoterScore) -> TableRow:
    return TableRow(label(voter.name), voter.cells(unknown="–"))
