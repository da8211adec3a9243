"""A run in a terminal: the headline, the verdict, short tables of weights and outputs, and what was left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from deltarank.report.terminal.fitting import columns_that_fit, in_ascii, sentence_on_the_rest, wrapped
from deltarank.report.view.activations import ActivationsView
from deltarank.report.view.build import page_data
from deltarank.report.view.headline import plain_text
from deltarank.report.view.outputs import OutputsView
from deltarank.report.view.page import PageData, RunView
from deltarank.report.view.provenance import LeftOutGroup
from deltarank.report.view.table import TableRow
from deltarank.report.view.text import NO_BREAK
from deltarank.results import Results, count, format_table, percent

_BOLD, _DIM, _RED, _YELLOW, _GREEN = "1", "2", "31", "33", "32"
MOST_MODULES = 24
"""Of more modules, the table has those that hold most of the change."""

_LEAST_WIDTH = 60
_RANK_WIDTH = 6
"""The least width of a rank's column. A longer cosine distance is rounded to two digits."""

_CANDIDATE_WIDTH = 24
"""The least width of the names of candidates: in 60 columns there is room for the first three columns."""

_OUTPUTS_COLUMNS = ("Mean KLD", "95 % interval", "99.9 %", "Same top p", "kept")
_OUTPUTS_NEEDED = ("Mean KLD", "Same top p", "kept", "95 % interval", "99.9 %")
"""The columns, most important first: narrow terminals omit the last ones."""

Paint = Callable[[str, str], str]


def terminal_summary(results: Results, *, colour: bool = False, width: int = 100) -> str:
    """The result as text, at most `width` columns wide (60 at least), with colour codes only if `colour`."""
    page = page_data([results])
    run = page.runs[0]
    width = max(width, _LEAST_WIDTH)

    def paint(text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if colour else text

    blocks = [
        _bold(_headline(page), paint, width),
        _opening(run, paint, width),
        *(_outputs(run.outputs, paint, width) if run.outputs else []),
        _sentences(page, run, width),
        _weights(page, run, paint, width) if run.matrices_measured and run.energy and not run.is_unrelated else [],
        _activations(page, run.activations, paint, width) if run.activations and run.energy else [],
        [line for group in run.left_out for line in _left_out(group, width)],
        [line for note in run.provenance.notes for line in wrapped(f"Note: {note.removesuffix('.')}.", width)],
        wrapped(run.provenance.audit_sentence, width),
    ]
    return "\n\n".join("\n".join(lines) for lines in blocks if lines) + "\n"


def _bold(text: str, paint: Paint, width: int) -> list[str]:
    return [paint(line, _BOLD) for line in wrapped(text, width)]


def _headline(page: PageData) -> str:
    return plain_text(page.headlines[page.default_index]).replace(NO_BREAK, " ")


def _opening(run: RunView, paint: Paint, width: int) -> list[str]:
    """The lines under the headline, beside their titles."""
    column = 2 + max((len(title) for title, _ in run.opening_lines), default=0)
    lines = []
    for title, sentence in run.opening_lines:
        first, *rest = wrapped(sentence, width - column)
        lines += [paint(title, _DIM) + " " * (column - len(title)) + first, *(" " * column + line for line in rest)]
    return lines


def _sentences(page: PageData, run: RunView, width: int) -> list[str]:
    """The rest of the verdict on the weights."""
    more = (
        [] if run.outputs else ["Only the weights were measured; `deltarank outputs` measures predictions and texts."]
    )
    said = {_headline(page), *run.opening}
    sentences = [*(sentence for sentence in run.sentences if sentence not in said), *more]
    return [line for sentence in sentences for line in wrapped(sentence, width)]


def _weights(page: PageData, run: RunView, paint: Paint, width: int) -> list[str]:
    """The energy kept by module and rank, the cosine distance under it."""
    *modules, whole, cosine = run.energy_table.rows
    largest = sorted(range(len(modules)), key=lambda i: -(run.modules[i].share or 0.0))[:MOST_MODULES]
    shown = [*(modules[i] for i in sorted(largest)), whole, cosine]
    rows = _rows_by_rank(page, shown, width)
    rows[-1][2:] = [_at_most_six_letters(cell) for cell in rows[-1][2:]]
    header, *lines = _lines_by_rank([*_painted(rows[:-1], paint), rows[-1]])
    hidden = len(modules) - len(largest)
    missing = [str(rank) for rank in page.ranks if str(rank) not in rows[0]]
    return [
        paint("Energy kept, in %, by LoRA rank (share: of their change)", _BOLD),
        paint(header, _DIM),
        *lines[:-2],
        *([f"({count(hidden, 'module')} with smaller changes not shown)"] if hidden else []),
        *lines[-2:],
        *wrapped(sentence_on_the_rest("rank", missing, "results.json has"), width),
        paint("Cosine distance 0.3 means that half of the energy is lost.", _DIM),
    ]


def _activations(page: PageData, activations: ActivationsView, paint: Paint, width: int) -> list[str]:
    """The same by the outputs of the layers, on the calibration text."""
    *modules, whole = activations.table.rows
    header, *lines = _lines_by_rank(_painted(_rows_by_rank(page, [*modules[:MOST_MODULES], whole], width), paint))
    title = "Energy of the layers' outputs kept, in %, by LoRA rank (share: of their change)"
    sentence = activations.sentences[page.default_index]
    return [*_bold(title, paint, width), paint(header, _DIM), *lines, *wrapped(sentence, width)]


def _rows_by_rank(page: PageData, rows: Sequence[TableRow], width: int) -> list[list[str]]:
    """The rows of a table of modules and ranks under its header, with the columns that fit.

    If space is short, the rank of the headline comes first, then servable ranks.
    """
    cells = [["module", "share", *map(str, page.ranks)], *([row.name, *map(in_ascii, row.cells)] for row in rows)]
    ranks = sorted(range(len(page.ranks)), key=lambda i: (i != page.default_index, not page.servable[i], i))
    columns = [1, *(i + 2 for i in ranks)]
    return columns_that_fit(cells, columns, width, name=len("cosine distance"), gap=1, minimum=_RANK_WIDTH)


def _painted(rows: Sequence[list[str]], paint: Paint) -> list[list[str]]:
    """Rows under a header, their percentages coloured."""
    header, *rest = rows
    return [header, *([*row[:2], *(paint(cell, _kept_colour(cell)) for cell in row[2:])] for row in rest)]


def _lines_by_rank(rows: Sequence[Sequence[str]]) -> list[str]:
    return format_table(rows, align="<>", minimum=(0, len("share"), _RANK_WIDTH), gap=1)


def _outputs(outputs: OutputsView, paint: Paint, width: int) -> list[list[str]]:
    """The verdict, and a line for each candidate on the text that the page shows first."""
    blocks = [[line for sentence in outputs.sentences for line in wrapped(sentence, width)]]
    table = outputs.logits_tables[outputs.default_text] if outputs.texts else None
    if table is None:
        return blocks
    headings = [in_ascii(heading) for heading in table.headings]
    columns = [0, *(headings.index(heading) for heading in _OUTPUTS_COLUMNS)]
    rows = [headings, *([row.name, *map(in_ascii, row.cells)] for row in table.rows)]
    rows = [[row[i] for i in columns] for row in rows]
    needed = [1 + _OUTPUTS_COLUMNS.index(heading) for heading in _OUTPUTS_NEEDED]
    title = f"KLD from the finetune in nats per token, on {outputs.texts[outputs.default_text].name}"
    lines = format_table(columns_that_fit(rows, needed, width, name=_CANDIDATE_WIDTH, gap=2), align="<>")
    rows_of_writing = outputs.writing_table.rows if outputs.writing_table and outputs.has_similarity else ()
    writing = [f"{row.name}: {row.cells[0]}" for row in rows_of_writing]
    similarity = f"Similarity to the finetune's answers (TF-IDF cosine): {'; '.join(writing)}."
    return [
        *blocks,
        [*_bold(title, paint, width), *lines, *(wrapped(similarity, width) if writing else [])],
    ]


def _at_most_six_letters(number: str) -> str:
    return number if len(number) <= _RANK_WIDTH else f"{float(number):.2g}"


def _kept_colour(percentage: str) -> str:
    if percentage == "-":
        return _DIM
    kept = float(percentage.strip("<>"))
    return _RED if kept < 50 else _YELLOW if kept < 90 else _GREEN


def _left_out(group: LeftOutGroup, width: int) -> list[str]:
    share = "" if group.share is None else f" ({percent(group.share)} of the whole change)"
    return wrapped(f"Left out: {count(group.count, 'tensor')}{share}: {group.sentence}.", width)
