"""What a quick measurement leaves out, and how it says so."""

from __future__ import annotations

from collections.abc import Sequence

from deltarank.divergence import Document, Prompt
from deltarank.jobs.outputs.options import OutputsOptions
from deltarank.results import DEFAULT_OUTPUTS_RANKS, Outputs, count, listing
from deltarank.system import Default

QUICK_PROMPTS = 24
"""The most that are answered."""

QUICK_TOKENS = 2048
"""The most that are read of each text."""

_QUICK = "a quick measurement: "
"""How the note begins."""


def quick_prompts(prompts: Sequence[Prompt]) -> list[Prompt]:
    return list(prompts[:QUICK_PROMPTS])


def quick_documents(documents: Sequence[Document]) -> list[Document]:
    """Documents at even distances, as many as have QUICK_TOKENS on average, and at least one."""
    tokens = sum(len(document.ids) for document in documents)
    if tokens <= QUICK_TOKENS:
        return list(documents)
    number = max(len(documents) * QUICK_TOKENS // tokens, 1)
    return [documents[i * len(documents) // number] for i in range(number)]


def quick_note(options: OutputsOptions, prompts: int) -> str:
    """What was measured, what the default measures, and how to get the rest."""
    answers = count(options.samples, "answer")
    ranks = listing([str(rank) for rank in options.ranks])
    usual = listing([str(rank) for rank in DEFAULT_OUTPUTS_RANKS])
    text = f", {QUICK_TOKENS:,} tokens of each text" if options.texts else ""
    measured = (
        f"rank {ranks}, {answers} of up to {options.max_tokens:,} tokens to each of {count(prompts, 'prompt')}{text}"
    )
    return (
        f"{_QUICK}{measured}; yardsticks and the delta of any rank answer none. Without --quick: ranks {usual}, "
        f"truncation alone, {Default.SAMPLES} answers of up to {Default.MAX_TOKENS:,} tokens, whole texts and narrower "
        "intervals; in the same folder they replace these outputs"
    )


def is_quick_note(note: str) -> bool:
    return note.startswith(_QUICK)


def is_quick(outputs: Outputs) -> bool:
    """Whether these results are those of a quick measurement."""
    return bool(outputs.settings.get("quick"))
