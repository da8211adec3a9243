"""Outputs in a terminal: their verdict, and a line for each candidate."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from deltarank.report.view.outputs_page import CandidateView, OutputsView
from deltarank.report.view.text import share_percent, short
from deltarank.results import Logits, figure, percent

_COLUMNS = ("mean KLD", "95 % interval", "99.9 %", "same top", "kept")
_WIDTHS = (10, 21, 8, 13, 13)
_NEEDED = (0, 3, 4, 1, 2)
"""Which columns stay where there is no room for all, in this order."""


def outputs_lines(outputs: OutputsView, width: int) -> list[str]:
    """A heading and a table, on the text that the page shows at first; nothing where nothing was scored."""
    if not outputs.texts:
        return []
    text = outputs.texts[outputs.start]
    scored = [(each, logits) for each in outputs.candidates if (logits := each.logits[outputs.start]) is not None]
    if not scored:
        return []
    name_room = min(max(len(each.name) for each, _ in scored), 30)
    shown = _columns(width - name_room)
    heading = f"Nats per token from the finetune, on {text.name}"
    return [
        short(heading, most=width),
        _line("candidate", [_COLUMNS[i] for i in shown], shown, name_room),
        *(_line(each.name, [_cells(logits)[i] for i in shown], shown, name_room) for each, logits in scored),
        *_writing(scored, outputs, width),
    ]


def _columns(room: int) -> list[int]:
    """The columns that fit, in the order of the table."""
    fitting: list[int] = []
    for column in _NEEDED:
        if sum(_WIDTHS[i] for i in (*fitting, column)) <= room:
            fitting.append(column)
    return sorted(fitting)


def _line(name: str, cells: Sequence[str], columns: Sequence[int], room: int) -> str:
    filled = "".join(f"{cell:>{_WIDTHS[i]}}" for cell, i in zip(cells, columns, strict=True))
    return f"{short(name, most=room):<{room}}{filled}"


def _cells(logits: Logits) -> tuple[str, ...]:
    kld = logits.kld
    return (
        figure(kld.mean),
        "-" if kld.low is None else f"{figure(kld.low)} to {figure(kld.high)}",
        figure(kld.p999),
        percent(logits.same_top_p.value),
        "-" if logits.kept is None else share_percent(logits.kept.value).replace("\u2212", "-"),
    )


def _writing(scored: Sequence[tuple[CandidateView, Logits]], outputs: OutputsView, width: int) -> list[str]:
    """How like the finetune's its answers are, each beside what sampling alone does."""
    if outputs.again is None:
        return []
    told = [f"{each.name} {figure(each.writing.cosine)}" for each, _ in scored if each.writing]
    told = [f"finetune again {figure(outputs.again.cosine)}", *told]
    line = f"Answers like the finetune's (TF-IDF cosine): {', '.join(told)}."
    return textwrap.wrap(line, width, break_on_hyphens=False) if len(told) > 1 else []
