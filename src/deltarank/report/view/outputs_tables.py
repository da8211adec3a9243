"""OutputsView -> the tables of the page: llama.cpp's names where llama.cpp has the figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deltarank.report.view.outputs_page import CandidateView, OutputsView
from deltarank.report.view.page import PageData
from deltarank.report.view.text import share_percent, unbroken
from deltarank.results import CandidateKind, Logits, Writing, figure, listing, percent

HEADINGS = (
    "Mean KLD",
    "95 % interval",
    "kept",
    "Max",
    "99.9 %",
    "99 %",
    "95 %",
    "90 %",
    "Median",
    "KLD, reverse",
    "RMS Δp",
    "Mean Δp",
    "Same top p",
    "PPL",
    "ln(PPL ratio)",
    "tokens to tell",
)
WRITING_HEADINGS = ("like the finetune's (cosine)", "distinct words", "words", "told apart", "p", "prompts × answers")

AGAIN_NAME = "finetune, other seeds"
"""The A/A arm; a control among the candidates is the finetune again with nothing drawn."""


@dataclass(frozen=True)
class Line:
    """A row. `place` is that of its rank on the dial."""

    name: str
    place: int | None
    cells: tuple[str, ...]


def logits_lines(outputs: OutputsView, text: int, ranks: Sequence[int]) -> list[Line]:
    """A row a candidate, as they stand in the run."""
    return [
        Line(each.name, place_of(each, ranks), _cells(logits))
        for each in outputs.candidates
        if (logits := each.logits[text]) is not None
    ]


def place_of(candidate: CandidateView, ranks: Sequence[int]) -> int | None:
    """Where the dial stands when this candidate is meant."""
    known = candidate.kind is CandidateKind.RANK and candidate.rank in ranks
    return ranks.index(candidate.rank) if known and candidate.rank is not None else None


def _cells(logits: Logits) -> tuple[str, ...]:
    kld = logits.kld
    return (
        figure(kld.mean),
        f"{figure(kld.low)} – {figure(kld.high)}" if kld.low is not None else "–",
        unbroken(share_percent(logits.kept.value)) if logits.kept else "–",
        *(figure(value) for value in (kld.max, kld.p999, kld.p99, kld.p95, kld.p90, kld.median)),
        figure(logits.kld_reverse.mean),
        unbroken(percent(logits.rms_delta_p.value)),
        unbroken(f"{_signed(100 * logits.mean_delta_p)} %"),
        unbroken(percent(logits.same_top_p.value)),
        figure(logits.ppl),
        _signed(logits.log_ppl_ratio.value),
        figure(logits.tokens_to_tell, unknown="–"),
    )


def _signed(value: float) -> str:
    return figure(value).replace("-", "\u2212", 1) if value < 0 else figure(value)


@dataclass(frozen=True)
class KeptLine:
    """A row of the table over runs: what each keeps, and its mean KLD."""

    name: str
    place: int | None
    cells: tuple[tuple[str, str] | None, ...]


def notes_of(outputs: OutputsView) -> list[tuple[str, str]]:
    """What each candidate is, by name; those of which the same is said stand together."""
    said: dict[str, list[str]] = {}
    for each in outputs.candidates:
        if each.note:
            said.setdefault(each.note, []).append(each.name)
    if outputs.again is not None:
        said["other seeds: what sampling alone does"] = [AGAIN_NAME]
    return [(listing(names, most=12), note) for note, names in said.items()]


def kept_table(page: PageData) -> list[list[KeptLine]]:
    """Behaviour kept by rank, and then by what else was held against the finetunes; a column a run."""
    exact = [i for i in range(len(page.ranks)) if any(run.outputs and run.outputs.dial[i].exact for run in page.runs)]
    ranked = [KeptLine(str(page.ranks[i]), i, tuple(_at_place(run.outputs, i) for run in page.runs)) for i in exact]
    everyone = [each for run in page.runs if run.outputs for each in run.outputs.candidates]
    names = dict.fromkeys(each.name for each in everyone if place_of(each, page.ranks) is None)
    others = [KeptLine(name, None, tuple(_by_name(run.outputs, name) for run in page.runs)) for name in names]
    return [group for group in (ranked, others) if group]


def _at_place(outputs: OutputsView | None, place: int) -> tuple[str, str] | None:
    if outputs is None or not outputs.dial[place].exact:
        return None
    return _kept_cell(outputs, outputs.dial[place].candidate)


def _by_name(outputs: OutputsView | None, name: str) -> tuple[str, str] | None:
    if outputs is None:
        return None
    return _kept_cell(outputs, next((i for i, each in enumerate(outputs.candidates) if each.name == name), None))


def _kept_cell(outputs: OutputsView, candidate: int | None) -> tuple[str, str] | None:
    """On the text that is shown at first."""
    logits = outputs.candidates[candidate].logits[outputs.start] if candidate is not None and outputs.texts else None
    if logits is None:
        return None
    return unbroken(share_percent(logits.kept.value if logits.kept else None)), figure(logits.kld.mean)


def writing_lines(outputs: OutputsView, ranks: Sequence[int]) -> list[Line]:
    """A row a candidate under the finetune's own with other seeds: what sampling alone does."""
    lines = [
        Line(each.name, place_of(each, ranks), _writing(each.writing))
        for each in outputs.candidates
        if each.writing is not None
    ]
    if outputs.again is None:
        return lines
    return [Line(AGAIN_NAME, None, _writing(outputs.again)), *lines]


def _writing(writing: Writing) -> tuple[str, ...]:
    test = writing.test
    return (
        figure(writing.cosine),
        unbroken(percent(writing.distinct_words)),
        figure(writing.words),
        unbroken(percent(test.accuracy)) if test else "–",
        figure(test.p_value) if test else "–",
        f"{writing.prompts:,} × {writing.samples:,}",
    )
