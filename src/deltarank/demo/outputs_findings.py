"""What the demo's finetunes say when they are served as LoRAs: a small table, and sentences that hold for it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping

from deltarank.demo.findings import TITLES, finetunes_side_by_side
from deltarank.demo.recipe import Recipe
from deltarank.results import CandidateKind, Logits, Outputs, Results, figure, listing, percent


def spoken(runs: Mapping[str, Results], *, width: int = 80, rank: int = Recipe.lora_rank) -> list[str]:
    """Lines for a terminal; none where no run has outputs.

    Args:
        runs: the lab's comparisons by name.
        rank: the rank that the sentences are about.
    """
    found = {name: run.outputs for name, run in runs.items() if run.outputs is not None}
    own = {name: rows for name, outputs in found.items() if (rows := _own(outputs))}
    if not own:
        return []
    sentences = [*_sentences(runs, own, rank), *_attribution(found)]
    return [*_table(own), "", *(line for text in sentences for line in textwrap.wrap(text, width))]


def _own(outputs: Outputs) -> dict[str, Logits]:
    """Each candidate on the finetune's own answers, less the controls."""
    text = next((text.name for text in outputs.texts if text.own), None)
    return {
        candidate.name: logits
        for candidate in outputs.candidates
        for logits in candidate.logits
        if logits.text == text and candidate.kind is not CandidateKind.CONTROL
    }


def _table(own: Mapping[str, Mapping[str, Logits]]) -> list[str]:
    candidates = dict.fromkeys(name for rows in own.values() for name in rows)
    return finetunes_side_by_side(
        "How far what it says is from its finetune, on the finetune's own answers: nats per token, behaviour kept.",
        own,
        [[candidate, *(_cell(rows.get(candidate)) for rows in own.values())] for candidate in candidates],
    )


def _cell(logits: Logits | None) -> str:
    if logits is None:
        return "-"
    kept = "" if logits.kept is None else percent(logits.kept.value)
    return f"{figure(logits.kld.mean)}  {kept:>11}"


def _sentences(runs: Mapping[str, Results], own: Mapping[str, Mapping[str, Logits]], rank: int) -> Iterator[str]:
    told = []
    for name, rows in own.items():
        logits, weights = rows.get(f"rank {rank}"), runs[name].totals.whole.loss(rank)
        if logits is not None and logits.kept is not None:
            energy = percent(weights.energy_kept)
            told.append(f"{TITLES[name]} {percent(logits.kept.value)} ({energy})")
    if told:
        yield f"Behaviour kept at rank {rank}, and in brackets energy kept: {listing(told)}."
    rest = [
        f"{TITLES[name]} {percent(logits.kept.value)}"
        for name, rows in own.items()
        if (logits := rows.get("any rank")) and logits.kept is not None
    ]
    if rest:
        yield f"At any rank: {listing(rest)}. The rest is where no LoRA reaches: embeddings, norms and the output head."


def _attribution(found: Mapping[str, Outputs]) -> Iterator[str]:
    for name, outputs in found.items():
        for each in outputs.attribution:
            if not each.parts or each.rank_correlation is None:
                continue
            most = max(each.parts, key=lambda part: part.kld)
            yield (
                f"Which modules of the {TITLES[name]} matter: at rank {each.rank}, {most.name} alone makes the most, "
                f"{figure(most.kld)} nats per token. Rank correlation of what they lose in the weights with what that "
                f"does to the text: {figure(each.rank_correlation)} (1: the weights foretell it; 0: they do not)."
            )
