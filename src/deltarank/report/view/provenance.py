"""What was left out of a run, and how the rest was measured, in words."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from deltarank.report.view.page import AuditLine, LeftOutGroup, Origin
from deltarank.report.view.text import clean
from deltarank.results import Outcome, Reference, Results, count, duration, figure, listing, size

MOST_NAMES = 400
"""How many names one group shows; the JSON has them all."""

_TOLD_APART = {"ranks", "solver", "tolerance", "dtype", "device", "include", "exclude", "seconds", "command"}


def left_out(run: Results) -> tuple[LeftOutGroup, ...]:
    """Tensors without a loss by outcome, those that hold most of the change first."""
    groups: dict[Outcome, list[tuple[str, str, float | None]]] = {}
    for matrix in run.matrices:
        if not matrix.has_losses:
            groups.setdefault(matrix.outcome, []).append((matrix.name, matrix.reason or "", None))
    for skipped in run.skipped:
        groups.setdefault(skipped.outcome, []).append((skipped.name, skipped.reason, skipped.share))
    made = [_left_out(outcome, rows) for outcome, rows in groups.items()]
    return tuple(sorted(made, key=lambda group: (-(group.share or 0.0), -group.count)))


def _left_out(outcome: Outcome, rows: list[tuple[str, str, float | None]]) -> LeftOutGroup:
    shares = [share for _, _, share in rows if share is not None]
    names = tuple((clean(name), "" if reason == outcome.sentence else clean(reason)) for name, reason, _ in rows)
    return LeftOutGroup(
        sentence=outcome.sentence,
        count=len(rows),
        share=math.fsum(shares) if shares else None,
        unread=len(rows) - len(shares),
        names=names[:MOST_NAMES],
    )


def origin(run: Results) -> Origin:
    command = run.settings.get("command")
    return Origin(
        facts=tuple(_facts(run)),
        command=clean(command if isinstance(command, str) else " ".join(map(str, command))) if command else None,
        files=tuple((title, files) for title, ref in _references(run) if (files := _files(ref))),
        notes=tuple(clean(note) for note in run.notes),
        audit=tuple(
            AuditLine(clean(x.name), x.rank, x.cosine_distance, x.cosine_distance_float64, x.deviation)
            for x in run.audit
        ),
    )


def _references(run: Results) -> tuple[tuple[str, Reference], ...]:
    return (("base", run.base), ("finetune", run.finetune))


def _files(reference: Reference) -> tuple[tuple[str, str], ...]:
    return tuple((clean(name), size(number)) for name, number in reference.files.items())


def _facts(run: Results) -> list[tuple[str, str]]:
    settings = run.settings
    facts = [(title, _reference(reference)) for title, reference in _references(run)]
    facts.append(("ranks", ", ".join(str(rank) for rank in run.ranks)))
    facts.append(("solver", _solvers(run)))
    for key in ("tolerance", "dtype", "device", "include", "exclude"):
        if settings.get(key) not in (None, "", [], ()):
            facts.append((key, _value(settings[key])))
    facts.extend((clean(key), _value(value)) for key, value in settings.items() if key not in _TOLD_APART)
    facts.append(("matrices", _matrices(run)))
    if isinstance(seconds := settings.get("seconds"), (int, float)):
        facts.append(("time", duration(seconds)))
    facts.append(("measured", f"{clean(run.created)} by deltarank {clean(run.tool_version)}"))
    return facts


def _reference(reference: Reference) -> str:
    revision = f" at revision {reference.revision}" if reference.revision else ""
    total = sum(reference.files.values())
    files = f" ({count(len(reference.files), 'file')}, {size(total)})" if reference.files else ""
    return clean(reference.ref + revision) + files


def _solvers(run: Results) -> str:
    """What was asked for, and what it came to: "auto: 200 by exact, 80 by krylov"."""
    used: dict[str, int] = {}
    for matrix in run.matrices:
        if matrix.solver:
            used[matrix.solver] = used.get(matrix.solver, 0) + 1
    asked = clean(run.settings.get("solver", "")) or "auto"
    if not used:
        return asked
    return f"{asked}: " + clean(listing([f"{number:,} by {name}" for name, number in used.items()]))


def _matrices(run: Results) -> str:
    whole = run.totals.whole
    return f"{count(whole.matrices, 'matrix', 'matrices')} with {figure(whole.entries)} weights"


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(_value(x) for x in value)
    if isinstance(value, Mapping):
        return clean(json.dumps(value))
    return clean(value)
