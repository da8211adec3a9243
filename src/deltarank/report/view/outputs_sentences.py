"""The page's own sentences about outputs: one for each rank of the dial, and one for each attribution."""

from __future__ import annotations

from collections.abc import Sequence

from deltarank.report.view.outputs_page import CandidateView, Dialled, TextView
from deltarank.report.view.text import clean, share_percent, unbroken
from deltarank.results import AttributionResult, CandidateKind, Logits, figure, percent


def rank_line(
    rank: int, dialled: Dialled, candidates: Sequence[CandidateView], texts: Sequence[TextView], place: int
) -> str:
    """ "At rank 64 it is 0.071 nats per token away from the finetune ... as q4_0 and q8_0 are ..." """
    if dialled.candidate is None or not dialled.exact:
        return f"What rank {rank} says was not measured."
    logits = candidates[dialled.candidate].logits[place]
    if logits is None:
        return f"What rank {rank} says was not measured on {texts[place].name}."
    keeps = f", keeps {share_percent(logits.kept.value)} of its behaviour" if logits.kept else ""
    same = f"puts the same token first {percent(logits.same_top_p.value)} of the time"
    beside = _beside(logits, candidates, place)
    away = f"In what it says, rank {rank} is {figure(logits.kld.mean)} nats per token away from the finetune"
    return unbroken(f"{away}{beside}{keeps} and {same} (on {texts[place].name}).")


def _beside(logits: Logits, candidates: Sequence[CandidateView], place: int) -> str:
    """Where it lies among the quantised finetunes: between two, nearer than all or farther than all."""
    known = sorted(
        (found.kld.mean, each.name)
        for each in candidates
        if each.kind is CandidateKind.YARDSTICK and (found := each.logits[place]) is not None
    )
    nearer = [name for mean, name in known if mean <= logits.kld.mean]
    farther = [name for mean, name in known if mean > logits.kld.mean]
    if nearer and farther:
        return f" (between {nearer[-1]} and {farther[0]})"
    if nearer:
        return f" (farther than {nearer[-1]})"
    return f" (nearer than {farther[0]})" if farther else ""


def attribution_sentence(attribution: AttributionResult) -> str:
    """What was done, whether the parts add up, and whether the loss in the weights foretells the KLD."""
    one = f"One {clean(attribution.unit)} at a time was brought to rank {attribution.rank}, the rest left as finetuned"
    parts = [f"{one}. All of them at once: {figure(attribution.together)} nats per token."]
    if attribution.additivity is not None:
        parts.append(f"Taken singly they add up to {figure(attribution.additivity)} times that.")
    if attribution.rank_correlation is not None:
        figures = f"rank correlation {figure(attribution.rank_correlation)} (Spearman)"
        parts.append(f"A part's loss in the weights and its KLD: {figures}; at 1 the weights foretell the order.")
    return " ".join(parts)
