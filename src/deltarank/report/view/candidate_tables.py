"""The tables of one run's candidates, with llama.cpp's names for what llama.cpp prints as well."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from deltarank.report.view.candidates import CandidateView
from deltarank.report.view.table import Table, TableRow
from deltarank.report.view.text import behaviour_percent, unbroken
from deltarank.results import Logits, Text, Writing, count, figure, listing, percent

LOGITS_HEADINGS = (
    "candidate",
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
_WRITING_HEADINGS = (
    "candidate",
    "similarity (cosine)",
    "distinct words",
    "words",
    "classifier accuracy",
    "p",
    "prompts × answers",
)
_WRITING_CAPTION = (
    "Complete answers to the prompts, sampled with the same settings. Classifier accuracy: how often a classifier "
    "tells them from the finetune's; 50 % is chance. p: the share of random label permutations that do as well."
)

_NO_SIMILARITY = (
    "Text similarity (TF-IDF cosine) is left out: it does not tell the base's answers from a second run's of the "
    "finetune."
)

FINETUNE_AGAIN_NAME = "finetune, other seeds"
"""The A/A arm: the effect of sampling alone."""


def logits_table(candidates: Sequence[CandidateView], text: Text, text_index: int) -> Table | None:
    """A row for each candidate that was scored on this text; None if there is none."""
    rows = tuple(
        TableRow(candidate.name, _logits_cells(logits), candidate.rank_index)
        for candidate in candidates
        if (logits := candidate.logits[text_index]) is not None
    )
    written = " (written by the finetune at temperature 1)" if text.own else ""
    scored = f"{count(text.documents, 'document')}, {count(text.tokens, 'token')} scored"
    headings = tuple(unbroken(heading) for heading in LOGITS_HEADINGS)
    return Table(headings, (rows,), f"{text.name}{written}: {scored}. KLD in nats per token.") if rows else None


def _logits_cells(logits: Logits) -> tuple[str, ...]:
    kld = logits.kld
    return (
        figure(kld.mean),
        f"{figure(kld.low)} – {figure(kld.high)}" if kld.low is not None else "–",
        unbroken(behaviour_percent(logits.kept.value)) if logits.kept else "–",
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


def writing_table(candidates: Sequence[CandidateView], again: Writing | None, *, similarity: bool) -> Table | None:
    """A row for each candidate that wrote answers, under the finetune with other seeds; None without answers.

    Args:
        similarity: whether text similarity tells the base from a second run of the finetune; else it is left out.
    """
    rows = [TableRow(FINETUNE_AGAIN_NAME, _writing_cells(again))] if again else []
    rows += [TableRow(c.name, _writing_cells(c.writing), c.rank_index) for c in candidates if c.writing]
    if not rows:
        return None
    if similarity:
        return Table(_WRITING_HEADINGS, (tuple(rows),), _WRITING_CAPTION)
    rows = [replace(row, cells=row.cells[1:]) for row in rows]
    return Table((_WRITING_HEADINGS[0], *_WRITING_HEADINGS[2:]), (tuple(rows),), f"{_WRITING_CAPTION} {_NO_SIMILARITY}")


def _writing_cells(writing: Writing) -> tuple[str, ...]:
    test = writing.test
    return (
        figure(writing.cosine),
        unbroken(percent(writing.distinct_words)),
        figure(writing.words),
        unbroken(percent(test.accuracy)) if test else "–",
        figure(test.p_value) if test else "–",
        f"{writing.prompts:,} × {writing.samples:,}",
    )


def candidate_notes(candidates: Sequence[CandidateView], again: Writing | None) -> tuple[tuple[str, str], ...]:
    """(names, what they are). Candidates with the same note share a line."""
    names_by_note: dict[str, list[str]] = {}
    for candidate in candidates:
        if candidate.note:
            names_by_note.setdefault(candidate.note, []).append(candidate.name)
    if again is not None:
        names_by_note["the finetune with other seeds: the effect of sampling alone"] = [FINETUNE_AGAIN_NAME]
    return tuple((listing(names, most=12), note) for note, names in names_by_note.items())
