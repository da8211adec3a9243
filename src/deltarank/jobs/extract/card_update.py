"""States on the model card of an adapter what `outputs` measured of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from deltarank.adapters import BUDGET_PICTURE_FILE, METADATA_FILE, MODEL_CARD_FILE, open_adapter
from deltarank.errors import JobError, OutputError
from deltarank.jobs.extract.model_card import FIRST_LINE, LAST_LINE, render_model_card, results_section
from deltarank.jobs.extract.result import ExtractedAdapter
from deltarank.results import AdapterBehaviour, CandidateKind, CandidateResult, Results
from deltarank.runtime import as_output_error
from deltarank.system import write_text_atomically


def update_card(adapter: str | os.PathLike[str], results: Results) -> ExtractedAdapter:
    """Writes the divergence that `outputs` measured of an adapter into its deltarank.json and onto its model card.

    Of the card, only the lines between the two marks that `extract` wrote are replaced. A card that is missing is
    written again.

    Args:
        adapter: a folder that `extract` wrote.
        results: of an `outputs` run that had the adapter among its candidates.

    Returns:
        The adapter with its `behaviour`.

    Raises:
        ResultsError: (slug "results-unreadable") the folder has no deltarank.json.
        JobError: (slug "adapter-not-measured") the results are not about this adapter, as it is now.
        OutputError: (slug "card-changed") the card has no marks; or it cannot be written.
    """
    found = ExtractedAdapter.load(adapter)
    behaviour = _behaviour(found, results)
    if behaviour is None:
        raise JobError(
            f"The results contain no outputs of {found.folder}, as it is now, and of the finetune that it came from.",
            cure=f"Run `deltarank outputs BASE FINETUNE --adapter {found.folder} --update-cards`.",
            slug="adapter-not-measured",
        )
    updated = replace(found, behaviour=behaviour)
    card = found.folder / MODEL_CARD_FILE
    text = _new_card(updated, card)
    with as_output_error(found.folder):
        write_text_atomically(card, text)
        write_text_atomically(found.folder / METADATA_FILE, updated.to_json())
    return updated


def _behaviour(adapter: ExtractedAdapter, results: Results) -> AdapterBehaviour | None:
    outputs = results.outputs
    if outputs is None or not _is_of(adapter, outputs.settings.get("identity")):
        return None
    with open_adapter(adapter.folder) as lora:
        fingerprint = lora.file.fingerprint
    given = outputs.settings["identity"]["given"]
    measured = [c for c in outputs.candidates if c.kind is CandidateKind.ADAPTER]
    candidates: Iterator[tuple[str, CandidateResult]] = zip(outputs.settings["adapters"], measured, strict=False)
    same = (candidate for ref, candidate in candidates if str(given.get(ref, "")).startswith(fingerprint))
    return AdapterBehaviour.of(outputs, candidate) if (candidate := next(same, None)) else None


def _is_of(adapter: ExtractedAdapter, identity: object) -> bool:
    """Whether a run compares the checkpoints that the adapter was extracted from."""
    fingerprints = adapter.settings.get("fingerprints")
    if not isinstance(identity, dict) or not isinstance(fingerprints, dict):
        return False
    return bool(fingerprints) and fingerprints.items() <= identity.items()


def _new_card(adapter: ExtractedAdapter, card: Path) -> str:
    """The card with the new lines between the marks."""
    if not card.exists():
        return render_model_card(adapter, picture=(adapter.folder / BUDGET_PICTURE_FILE).exists())
    lines = card.read_text(encoding="utf-8").splitlines()
    if FIRST_LINE not in lines or LAST_LINE not in lines[lines.index(FIRST_LINE) :]:
        raise OutputError(
            f"{card} does not contain the lines {FIRST_LINE} and {LAST_LINE}, between which the figures are replaced.",
            cure="Put them where the figures should be, or delete the file: then it is written again.",
            slug="card-changed",
        )
    first = lines.index(FIRST_LINE)
    last = lines.index(LAST_LINE, first)
    return "\n".join([*lines[:first], *results_section(adapter), *lines[last + 1 :]]) + "\n"
