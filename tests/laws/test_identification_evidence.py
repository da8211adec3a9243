"""What is said of sampled text under candidates: which is named, and when none is."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deltarank.divergence import SETTINGS, TEMPERATURES, log_probabilities_by_setting
from deltarank.jobs.endpoints.identification_evidence import FEWEST_TOKENS, CandidateName, EndpointEvidence
from deltarank.jobs.endpoints.identification_verdict import identification_sentences
from deltarank.jobs.endpoints.known_models import AnswerScore
from deltarank.results import ServedKind

WORDS, ANSWERS, TOKENS = 200, 20, 48
NAMES = [CandidateName("base", ServedKind.BASE, None), CandidateName("finetune", ServedKind.FINETUNE, None)]


def evidence(temperature: float, listed_at: float | None = None) -> EndpointEvidence:
    """Of text by the base at this temperature, beside a finetune that is far from it.

    Args:
        listed_at: the temperature of the lists, which are those of the base.
    """
    draws = torch.Generator().manual_seed(3)
    logits = 2 * torch.randn((2, ANSWERS * TOKENS, WORDS), generator=draws)
    text = torch.multinomial(torch.softmax(logits[0] / temperature, -1), 1, generator=draws)[:, 0]
    found = EndpointEvidence(NAMES, np.array([[0, 2], [2, 0]]), alpha=0.01, tolerance=0.002)
    scores = [log_probabilities_by_setting(each, text) for each in logits]
    klds = [np.array([abs(each - (listed_at or 1)) for each in TEMPERATURES]), np.full(len(TEMPERATURES), 0.5)]
    lists = [() if listed_at is None else (each,) * 16 for each in klds]
    found.add([[AnswerScore(part, lists[i]) for part in np.split(each, ANSWERS)] for i, each in enumerate(scores)])
    return found


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5, 2.0])
def test_text_decides_for_a_candidate_unless_it_fits_a_temperature_above_1(temperature: float) -> None:
    """At 2, the base's own text is as improbable to it as text of a third model may be."""
    weighed = evidence(temperature).weigh()
    is_hotter = temperature > 1

    assert ANSWERS * TOKENS > FEWEST_TOKENS
    assert [NAMES[i].name for i in weighed.left] == ["base"]
    assert weighed.is_decided != is_hotter
    assert (weighed.stays_open is not None) == is_hotter
    said = " ".join(identification_sentences(weighed.to_results(weighed.stays_open), "A"))
    assert ("A may serve the base, the only candidate that is left, but it is not decided" in said) == is_hotter
    assert ("Text of a model that is no candidate looks like that, too." in said) == is_hotter


@pytest.mark.parametrize(("temperature", "is_decided"), [(1.0, True), (1.5, False)])
def test_lists_of_a_candidate_do_not_decide_for_it_beside_a_text_that_may_be_of_another_model(
    temperature: float, is_decided: bool
) -> None:
    weighed = evidence(temperature, listed_at=1.0).weigh()

    assert [NAMES[i].name for i in weighed.left] == ["base"]
    assert weighed.is_decided == is_decided
    assert (weighed.stays_open is None) == is_decided


def test_lists_as_they_are_sampled_do_not_exclude_the_model_that_is_served() -> None:
    weighed = evidence(0.7, listed_at=0.7).weigh()

    assert [NAMES[i].name for i in weighed.left] == ["base"]
    assert weighed.is_decided
    assert weighed.klds == pytest.approx([0, 0.5])


def test_the_ratio_of_two_is_that_of_their_likelihoods() -> None:
    """Of the base as a mean over the settings, of the finetune with the setting that suits it best."""
    found = evidence(1.0)
    base, finetune = (np.sum([each.by_setting for each in answers], axis=(0, 1)) for answers in found.scores)
    prior = np.where([each.is_plain for each in SETTINGS], 0.5, 0.5 / (len(SETTINGS) - 1))
    ratio = np.log(np.sum(prior * np.exp(base - base.max()))) + base.max() - finetune.max()

    result = found.weigh().to_results(None)

    assert result.named("base").nearest == "finetune"
    assert result.named("base").nearest_log_e_value == pytest.approx(ratio)
