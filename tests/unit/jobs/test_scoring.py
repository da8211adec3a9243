"""Scores of a candidate: those of transformers' logits, however documents are batched, and none computed twice."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax, rel_entr
from transformers import AutoModelForCausalLM

from deltarank.divergence import Document
from deltarank.jobs.outputs.partial_folder import PartialFolder
from deltarank.jobs.outputs.scoring import Scorer, TextSet
from tiny_architectures import tokens
from unit.jobs.tiny_candidates import Finished, ignored, opened_model

DOCUMENTS = [
    Document(f"document {i}", tuple(ids[: 12 - 2 * i]), (False,) * (1 + i % 3) + (True,) * (11 - 2 * i - i % 3))
    for i, ids in enumerate(tokens(5).tolist())
]
"""Of different lengths, so that batches are padded; some begin with a prompt that is not scored."""


def scored(llama: tuple[Path, Path], folder: Path, *, size: int | None = None) -> Scorer:
    """A scorer with the finetune's predictions, and the scores of candidate 0, the base."""
    scorer = Scorer(DOCUMENTS, PartialFolder(folder), size=size, tokens=30)
    for side, run in ((llama[1], scorer.store_reference), (llama[0], lambda *args: scorer.score(0, *args))):
        done = Finished()
        with opened_model(side) as model:
            run(model, done)
        assert done.total(resumed=False) == sum(len(document.ids) for document in DOCUMENTS)
    return scorer


def log_probabilities(folder: Path, document: Document) -> NDArray[np.float64]:
    """Of the next token, at each scored token, by transformers itself."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([document.ids])).logits[0].double().numpy()
    rows = [i - 1 for i, is_scored in enumerate(document.scored) if is_scored]
    return np.asarray(log_softmax(logits[rows], axis=1))


@pytest.mark.parametrize("size", [None, 1, 3])
def test_scores_are_those_of_the_logits_of_transformers(
    llama: tuple[Path, Path], tmp_path: Path, size: int | None
) -> None:
    stats = scored(llama, tmp_path, size=size).stats(0, range(len(DOCUMENTS)))

    assert list(stats) == [document.name for document in DOCUMENTS]
    for document in DOCUMENTS:
        log_q, log_p = (log_probabilities(folder, document) for folder in llama)
        positions = [i for i, is_scored in enumerate(document.scored) if is_scored]
        targets = [document.ids[i] for i in positions]
        each = stats[document.name]
        assert list(each.position) == positions
        assert each.kld == pytest.approx(rel_entr(np.exp(log_p), np.exp(log_q)).sum(axis=1), rel=1e-3, abs=1e-7)
        assert each.nll == pytest.approx(-log_q[range(len(targets)), targets], abs=1e-5)
        assert each.reference_nll == pytest.approx(-log_p[range(len(targets)), targets], abs=1e-5)


def test_the_finetune_itself_is_at_distance_zero(llama: tuple[Path, Path], tmp_path: Path) -> None:
    scorer = scored(llama, tmp_path)
    with opened_model(llama[1]) as finetune:
        scorer.score(1, finetune, ignored)

    assert max(float(each.kld.max()) for each in scorer.stats(1, range(len(DOCUMENTS))).values()) < 1e-9


def test_only_the_documents_asked_for_are_scored(llama: tuple[Path, Path], tmp_path: Path) -> None:
    scorer = scored(llama, tmp_path)
    with opened_model(llama[0]) as base:
        scorer.score(1, base, ignored, only=[1, 4])

    assert list(scorer.stats(1, range(len(DOCUMENTS)))) == ["document 1", "document 4"]


def test_what_an_earlier_process_stored_is_not_computed_again(llama: tuple[Path, Path], tmp_path: Path) -> None:
    before = scored(llama, tmp_path, size=1).stats(0, range(len(DOCUMENTS)))
    PartialFolder(tmp_path).scores(0, 2).unlink()
    scorer = Scorer(DOCUMENTS, PartialFolder(tmp_path), size=1, tokens=30)
    with opened_model(llama[1]) as finetune, opened_model(llama[0]) as base:
        scorer.store_reference(finetune, reference := Finished())
        scorer.score(0, base, scores := Finished())
        predicted = [window.ids for window in (*finetune.predicted, *base.predicted)]
    after = scorer.stats(0, range(len(DOCUMENTS)))

    assert predicted == [DOCUMENTS[2].ids]
    assert reference.total(resumed=False) == 0
    assert scores.total(resumed=False) == len(DOCUMENTS[2].ids)
    assert all(np.array_equal(after[name].kld, before[name].kld) for name in before)


@pytest.mark.parametrize("tokens_of_each", [1, 10, 1000])
def test_in_a_part_of_whole_batches_equal_weights_differ_by_nothing(
    llama: tuple[Path, Path], tmp_path: Path, tokens_of_each: int
) -> None:
    """Other batches are padded otherwise, and matrix products of another shape round otherwise."""
    scorer = scored(llama, tmp_path)
    texts = [TextSet("short", 3, DOCUMENTS[3:]), TextSet("long", 0, DOCUMENTS[:3])]

    part = scorer.whole_batches(texts, tokens_of_each)
    with opened_model(llama[1]) as model:
        scorer.score(1, model, ignored, only=part)

    stats = scorer.stats(1, sorted(part))
    assert len(stats) == len(part)
    assert all(not each.kld.any() for each in stats.values())
    for text in texts:
        whole = scorer.count_tokens(text.numbers)
        assert scorer.count_tokens(part & set(text.numbers)) >= min(tokens_of_each, whole)
