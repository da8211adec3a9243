"""A run in a terminal: the sentence, a short table of the energy kept, the verdict, what was left out."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from deltarank.report.terminal.outputs import outputs_lines
from deltarank.report.view.build import page_data
from deltarank.report.view.chart_rows import THE_WHOLE, whole_lost
from deltarank.report.view.headline import plain
from deltarank.report.view.page import PageData, RunView
from deltarank.report.view.text import NO_BREAK, short, terse_percent, unbroken
from deltarank.results import Results, count, figure, percent

_BOLD, _DIM, _RED, _YELLOW, _GREEN = "1", "2", "31", "33", "32"
_COLUMN = 7
_SHARE = "share"
MOST_MODULES = 24
"""More modules than these are cut to those that hold most of the change."""

ABOUT_COSINE = "Cosine distance 0.3 means that half of the energy is gone."


def terminal_summary(results: Results, *, colour: bool = False, width: int = 100) -> str:
    """The answer as text, at most `width` columns wide (60 at least); escape codes only if `colour`."""
    page = page_data([results])
    run = page.runs[0]
    paint = _Paint(colour)
    width = max(width, 60)
    blocks = [_sentences(page, run, paint, width)]
    if run.matrices_measured and run.energy:
        blocks.append("\n".join(_table(page, run, paint, width)))
    blocks.append("\n".join(_outputs(run, paint, width)))
    blocks.append("\n".join(_left_out(run, width)))
    blocks.append(_audit(run, width))
    return "\n\n".join(block for block in blocks if block) + "\n"


class _Paint:
    """Escape codes, or none."""

    def __init__(self, colour: bool) -> None:
        self._colour = colour

    def __call__(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._colour else text

    def kept(self, text: str, kept: float | None) -> str:
        if kept is None:
            return self(text, _DIM)
        return self(text, _RED if kept < 0.5 else _YELLOW if kept < 0.9 else _GREEN)


def _wrapped(text: str, width: int) -> str:
    """At most `width` columns; a number and its percent sign stay together."""
    return textwrap.fill(unbroken(text), width, break_on_hyphens=False).replace(NO_BREAK, " ")


def _sentences(page: PageData, run: RunView, paint: _Paint, width: int) -> str:
    headline = plain(page.headlines[page.default]).replace(NO_BREAK, " ")
    rest = [sentence for sentence in run.sentences if sentence != headline]
    lines = [paint(line, _BOLD) for line in _wrapped(headline, width).splitlines()]
    return "\n".join([*lines, *(_wrapped(sentence, width) for sentence in rest)])


def _table(page: PageData, run: RunView, paint: _Paint, width: int) -> list[str]:
    """Energy kept in percent, modules down and ranks across; cosine distance under it."""
    places = _places(page, width)
    names = [page.modules[row.module].label for row in run.modules]
    room = min(max(len(name) for name in [*names, "cosine distance"]), _name_room(len(places), width))

    def line(name: str, share: str, cells: Sequence[str]) -> str:
        return f"{short(name, most=room):<{room}} {share:>{len(_SHARE)}}" + "".join(cells)

    ranks = [f"{page.ranks[i]:>{_COLUMN}}" for i in places]
    shown = sorted(run.modules, key=lambda row: -(row.share or 0.0))[:MOST_MODULES]
    rows = [
        line(
            page.modules[row.module].label,
            terse_percent(row.share).replace("–", "-"),
            [_kept_cell(row.lost[i], paint) for i in places],
        )
        for row in run.modules
        if row in shown
    ]
    hidden = len(run.modules) - len(shown)
    whole = [_kept_cell(whole_lost(run)[i], paint) for i in places]
    cosine = [_cosine_cell(run, i) for i in places]
    return [
        paint("Energy kept, in %, by LoRA rank (share: of the whole change)", _BOLD),
        paint(line("module", _SHARE, ranks), _DIM),
        *rows,
        *([f"({count(hidden, 'module')} with smaller changes not shown)"] if hidden else []),
        line(THE_WHOLE, "100", whole),
        line("cosine distance", "", cosine),
        paint(ABOUT_COSINE, _DIM),
    ]


def _outputs(run: RunView, paint: _Paint, width: int) -> list[str]:
    """What it says, where that was measured: the verdict's sentences and a line a candidate."""
    if run.outputs is None:
        return []
    said = [_wrapped(sentence, width) for sentence in run.outputs.sentences]
    heading, *lines = outputs_lines(run.outputs, width) or [""]
    return [*said, *(["", paint(heading, _BOLD), *lines] if heading else [])]


def _name_room(ranks: int, width: int) -> int:
    return max(width - 1 - len(_SHARE) - _COLUMN * ranks, len("cosine distance"))


def _places(page: PageData, width: int) -> list[int]:
    """The ranks that fit: the dial's first, then legal ones, in rising order."""
    room = (width - 1 - len(_SHARE) - len("cosine distance")) // _COLUMN
    ordered = sorted(range(len(page.ranks)), key=lambda i: (i != page.default, not page.legal[i], i))
    return sorted(ordered[: max(room, 1)])


def _kept_cell(lost: float | None, paint: _Paint) -> str:
    kept = None if lost is None else 1.0 - lost
    text = "-" if kept is None else ">99.9" if lost and kept == 1 else terse_percent(kept)
    return paint.kept(f"{text:>{_COLUMN}}", kept)


def _cosine_cell(run: RunView, place: int) -> str:
    """Two digits where three would touch the next column."""
    loss = run.losses[place]
    text = figure(loss.cosine_distance if loss else None, unknown="-")
    if loss and len(text) >= _COLUMN:
        text = f"{loss.cosine_distance:.2g}"
    return f"{text:>{_COLUMN}}"


def _left_out(run: RunView, width: int) -> list[str]:
    """A line for each reason, those that hold most of the change first."""
    return [
        _wrapped(f"Left out: {count(group.count, 'tensor')}{_share(group.share)}: {group.sentence}.", width)
        for group in run.left_out
    ]


def _share(share: float | None) -> str:
    return "" if share is None else f" ({percent(share)} of the whole change)"


def _audit(run: RunView, width: int) -> str:
    """How far the matrices that were measured again were off; nothing without an audit."""
    lines = run.origin.audit
    if not lines:
        return ""
    worst = max(line.deviation for line in lines)
    again = f"{count(len(lines), 'matrix', 'matrices')} measured again in float64 by a full SVD"
    return _wrapped(f"Audit: {again}; largest deviation of a cosine distance {figure(worst)}.", width)
