"""What is kept of the behaviour at a rank, where outputs were measured there."""

from __future__ import annotations

from deltarank.report.view.outputs import OutputsView
from deltarank.report.view.page import Phrase, RunView
from deltarank.report.view.text import behaviour_percent, unbroken, with_whole_exponents
from deltarank.results import CandidateKind, Interval, Logits, figure

MOST_REFERENCES = 3
"""The base and yardsticks that a headline compares with."""


def behaviour_kept(run: RunView, rank_index: int) -> Interval | None:
    """The share kept on the text that the page shows first; None if it was not measured at this rank."""
    logits = _logits_at(run, rank_index)
    return logits.kept if logits else None


def behaviour_at(run: RunView, rank_index: int) -> tuple[Phrase, ...]:
    """ "A keeps 95 % of its behaviour: 0.03 nats per token from the finetune; the base is 0.86 away, q4_0 0.29." """
    logits = _logits_at(run, rank_index)
    assert run.outputs is not None
    assert logits is not None
    assert logits.kept is not None
    kept = logits.kept.value
    keeps = f" keeps {behaviour_percent(kept)} of its behaviour"
    words = keeps if kept >= 0 else " is farther from the finetune than the base"
    references = ", ".join(_references(run.outputs))
    distance = f"{figure(logits.kld.mean)} nats per token from the finetune"
    on_text = run.outputs.texts[run.outputs.default_text]
    where = "" if on_text.own else f" on {on_text.name}"
    return Phrase(run.label, is_name=True), Phrase(
        with_whole_exponents(unbroken(f"{words}{where}: {distance}; {references}."))
    )


def _logits_at(run: RunView, rank_index: int) -> Logits | None:
    if run.outputs is None or not run.outputs.texts:
        return None
    shown = run.outputs.at_rank[rank_index]
    if shown.index is None or not shown.is_exact:
        return None
    return run.outputs.candidates[shown.index].logits[run.outputs.default_text]


def _references(outputs: OutputsView) -> list[str]:
    """The base, then yardsticks with the largest divergence first."""
    scored = [
        (candidate, on.kld.mean) for candidate in outputs.candidates if (on := candidate.logits[outputs.default_text])
    ]
    base = [f"the base is {figure(kld)} away" for candidate, kld in scored if candidate.kind is CandidateKind.BASE]
    yardsticks = [(candidate.name, kld) for candidate, kld in scored if candidate.kind is CandidateKind.YARDSTICK]
    farthest = sorted(yardsticks, key=lambda each: -each[1])
    return [*base, *(f"{name} {figure(kld)}" for name, kld in farthest)][:MOST_REFERENCES]
