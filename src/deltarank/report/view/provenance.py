"""What a run left out, and how the rest was measured."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from deltarank.report.view.table import Table, TableRow
from deltarank.report.view.text import escape_lines
from deltarank.results import Outcome, Reference, Results, count, duration, escape, figure, listing, size

MOST_NAMES = 400
"""How many names of one group the page lists; the JSON has all."""

_SETTINGS_SHOWN_FIRST = ("tolerance", "dtype", "device", "include", "exclude")
_SETTINGS_SHOWN_ELSEWHERE = {*_SETTINGS_SHOWN_FIRST, "ranks", "solver", "seconds", "command"}


@dataclass(frozen=True)
class LeftOutGroup:
    """Tensors that were left out for one reason. `share` is None where none of them was read."""

    sentence: str
    count: int
    share: float | None
    unread: int
    names: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Provenance:
    """How something was measured: (title, value) pairs, the command, and notes. `files` are (name, size) by model."""

    facts: tuple[tuple[str, str], ...]
    command: str | None
    notes: tuple[str, ...]
    files: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = ()
    audit: Table | None = None
    audit_sentence: str = ""


def left_out_groups(run: Results) -> tuple[LeftOutGroup, ...]:
    """Tensors without a loss by outcome, the groups with the largest share of the change first."""
    groups: dict[Outcome, list[tuple[str, str, float | None]]] = {}
    for matrix in run.matrices:
        if not matrix.has_losses:
            groups.setdefault(matrix.outcome, []).append((matrix.name, matrix.reason or "", None))
    for skipped in run.skipped:
        groups.setdefault(skipped.outcome, []).append((skipped.name, skipped.reason, skipped.share))
    made = [_left_out_group(outcome, tensors) for outcome, tensors in groups.items()]
    return tuple(sorted(made, key=lambda group: (-(group.share or 0.0), -group.count)))


def _left_out_group(outcome: Outcome, tensors: list[tuple[str, str, float | None]]) -> LeftOutGroup:
    shares = [share for _, _, share in tensors if share is not None]
    names = tuple((escape(name), "" if reason == outcome.sentence else escape(reason)) for name, reason, _ in tensors)
    return LeftOutGroup(
        sentence=outcome.sentence,
        count=len(tensors),
        share=math.fsum(shares) if shares else None,
        unread=len(tensors) - len(shares),
        names=names[:MOST_NAMES],
    )


def provenance_of(run: Results) -> Provenance:
    """How the weights of a run were measured."""
    return Provenance(
        facts=tuple(_facts(run)),
        command=clean_command(run.settings),
        notes=tuple(escape(note) for note in run.notes),
        files=tuple(
            (title, tuple((escape(name), size(number)) for name, number in reference.files.items()))
            for title, reference in _references(run)
            if reference.files
        ),
        audit=_audit_table(run) if run.audit else None,
        audit_sentence=_audit_sentence(run) if run.audit else "",
    )


def clean_command(settings: Mapping[str, Any]) -> str | None:
    """The command of a run, if its settings have it; one on each line where candidates were added later."""
    command = settings.get("command")
    if isinstance(command, str) and command:
        return escape_lines(command)
    return setting_text(command) if command else None


def setting_text(value: Any) -> str:
    """The value of a setting: text as it is, lists as a series, anything else as JSON."""
    if isinstance(value, (list, tuple)):
        return ", ".join(setting_text(each) for each in value)
    return escape(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def settings_facts(settings: Mapping[str, Any], *, without: Collection[str] = ()) -> list[tuple[str, str]]:
    """(title, value) of the settings that have a value."""
    return [
        (escape(key).replace("_", " "), setting_text(value))
        for key, value in settings.items()
        if key not in without and value not in (None, "", [], (), {})
    ]


def _references(run: Results) -> tuple[tuple[str, Reference], ...]:
    return (("base", run.base), ("finetune", run.finetune))


def _facts(run: Results) -> list[tuple[str, str]]:
    settings = run.settings
    facts = [(title, _reference(reference)) for title, reference in _references(run)]
    facts.append(("ranks", ", ".join(str(rank) for rank in run.ranks)))
    facts.append(("solver", _solvers(run)))
    facts += settings_facts({key: settings.get(key) for key in _SETTINGS_SHOWN_FIRST})
    facts += settings_facts(settings, without=_SETTINGS_SHOWN_ELSEWHERE)
    whole = run.totals.whole
    facts.append(("matrices", f"{count(whole.matrices, 'matrix', 'matrices')} with {figure(whole.entries)} weights"))
    if isinstance(seconds := settings.get("seconds"), (int, float)):
        facts.append(("time", duration(seconds)))
    facts.append(("measured", f"{escape(run.created)} by deltarank {escape(run.tool_version)}"))
    return facts


def _reference(reference: Reference) -> str:
    revision = f" at revision {reference.revision}" if reference.revision else ""
    total = sum(reference.files.values())
    files = f" ({count(len(reference.files), 'file')}, {size(total)})" if reference.files else ""
    return escape(reference.ref + revision) + files


def _solvers(run: Results) -> str:
    """The solver that was requested, and those that were used: "auto: 200 by exact, 80 by krylov"."""
    used: dict[str, int] = {}
    for matrix in run.matrices:
        if matrix.solver:
            used[matrix.solver] = used.get(matrix.solver, 0) + 1
    requested = escape(run.settings.get("solver", "")) or "auto"
    if not used:
        return requested
    return f"{requested}: " + escape(listing([f"{number:,} by {name}" for name, number in used.items()]))


def _audit_table(run: Results) -> Table:
    rows = tuple(
        TableRow(
            escape(row.name),
            (
                str(row.rank),
                f"{row.cosine_distance:.6f}",
                f"{row.cosine_distance_float64:.6f}",
                figure(row.deviation),
            ),
        )
        for row in run.audit
    )
    headings = ("matrix", "rank", "cosine distance", "in float64", "deviation")
    return Table(headings, (rows,), "Audit: measured again in float64 by a full SVD")


def _audit_sentence(run: Results) -> str:
    matrices = count(len(run.audit), "matrix", "matrices")
    worst = figure(max(row.deviation for row in run.audit))
    return f"Audit: {matrices} measured again in float64 by a full SVD; largest deviation of a cosine distance {worst}."
