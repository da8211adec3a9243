"""Laws of the evidence of which model wrote a text, on models whose distributions are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from deltarank.divergence import (
    PLAIN,
    SETTINGS,
    CandidateEvidence,
    SamplerSetting,
    log_probabilities_by_setting,
    tokens_needed,
    uniform_posterior,
)

WORDS = 50
ALPHA = 0.05


def logits_of(model: int, steps: int, change: float, seed: int = 0) -> torch.Tensor:
    """(steps, words): what all models share, and noise of N(0, change^2) of this one."""
    shared = 2 * np.random.default_rng([seed, 7]).standard_normal((steps, WORDS))
    own = np.random.default_rng([seed, 8, model]).standard_normal((steps, WORDS))
    return torch.tensor(shared + change * own)


def sampled(logits: torch.Tensor, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.multinomial(torch.softmax(logits, -1), 1, generator=generator)[:, 0]


def evidence(models: list[torch.Tensor], targets: torch.Tensor, answer: int = 10) -> CandidateEvidence:
    scores = [log_probabilities_by_setting(each, targets) for each in models]
    return CandidateEvidence([[each[i : i + answer] for i in range(0, len(each), answer)] for each in scores])


def test_each_setting_is_a_distribution() -> None:
    row = logits_of(0, 1, 0.0).repeat(WORDS, 1)
    found = np.exp(log_probabilities_by_setting(row, torch.arange(WORDS)))

    assert found.sum(0) == pytest.approx(np.ones(len(SETTINGS)), abs=1e-6)


@pytest.mark.parametrize(
    ("setting", "kept"),
    [
        (SamplerSetting(top_k=20), lambda p: np.argsort(-p)[:20]),
        (SamplerSetting(min_p=0.1), lambda p: np.flatnonzero(p >= 0.1 * p.max())),
        (
            SamplerSetting(top_p=0.9),
            lambda p: np.argsort(-p)[: int(np.searchsorted(np.cumsum(np.sort(p)[::-1]), 0.9)) + 1],
        ),
    ],
)
def test_a_truncation_keeps_what_servers_keep(setting: SamplerSetting, kept: object) -> None:
    row = logits_of(0, 1, 0.0)
    p = torch.softmax(row, -1)[0].numpy()
    found = np.exp(log_probabilities_by_setting(row.repeat(WORDS, 1), torch.arange(WORDS)))[:, SETTINGS.index(setting)]
    expected = np.zeros(WORDS)
    expected[kept(p)] = p[kept(p)] / p[kept(p)].sum()  # type: ignore[operator]

    assert found == pytest.approx(0.999 * expected + 0.001 * p, rel=1e-5, abs=1e-9)


def test_log_probabilities_are_those_of_a_softmax_in_float64() -> None:
    rows, targets = logits_of(0, 40, 1.0), torch.arange(40)
    found = log_probabilities_by_setting(rows, targets)
    exact = torch.log_softmax(rows.double(), -1)[torch.arange(40), targets].numpy()

    assert found[:, PLAIN] == pytest.approx(exact, abs=1e-5)


def test_the_posterior_is_uniform_without_text_and_that_of_bayes_with_it() -> None:
    models = [logits_of(i, 30, 0.3) for i in range(3)]
    targets = sampled(models[1], 5)
    found = evidence(models, targets)
    by_setting = [log_probabilities_by_setting(each, targets).sum(0) for each in models]
    prior = np.array([0.5 if i == PLAIN else 0.5 / (len(SETTINGS) - 1) for i in range(len(SETTINGS))])
    marginals = np.array([(np.exp(each - max(map(max, by_setting))) * prior).sum() for each in by_setting])

    assert uniform_posterior(3) == pytest.approx(np.full(3, 1 / 3))
    assert np.exp(found.log_posterior[:, -1]) == pytest.approx(marginals / marginals.sum(), rel=1e-9)


def test_equal_candidates_share_the_posterior() -> None:
    model = logits_of(0, 40, 0.0)
    found = evidence([model, model], sampled(model, 1))

    assert np.exp(found.log_posterior[:, -1]) == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize("setting", [SamplerSetting(), SamplerSetting(0.7), SamplerSetting(top_k=20)])
def test_the_true_candidate_is_seldom_excluded_and_the_others_are(setting: SamplerSetting) -> None:
    """Runs in which the truth is ever excluded: at most alpha of them on average, by Ville's inequality."""
    wrong, right = 0, 0
    for run in range(60):
        models = [logits_of(i, 80, 1.0, seed=run) for i in range(3)]
        found = evidence(models, sampled(_served(models[0], setting), run))
        excluded = (found.log_e_excluded.max(axis=1) >= -math.log(ALPHA)).tolist()
        wrong += excluded[0]
        right += excluded == [False, True, True]

    assert wrong <= 3
    assert right >= 54


def _served(logits: torch.Tensor, setting: SamplerSetting) -> torch.Tensor:
    """The logits of what a server with this setting samples from."""
    if setting.top_k:
        edge = logits.topk(setting.top_k, -1).values[:, -1:]
        return logits.masked_fill(logits < edge, -torch.inf)
    return logits / setting.temperature


def test_a_text_of_another_model_fits_none() -> None:
    """It shares as much with each of them as they do with each other."""
    found_none = 0
    for run in range(20):
        models = [logits_of(i, 400, 1.0, seed=run) for i in range(4)]
        found = evidence(models[:3], sampled(models[3], run))
        found_none += bool((found.log_e_excluded.max(axis=1) >= -math.log(ALPHA)).all())

    assert found_none >= 17


def test_the_setting_of_the_sampler_is_found() -> None:
    model = logits_of(0, 600, 0.0)
    found = evidence([model], sampled(model / 0.7, 3)).setting_posterior(0)

    assert SETTINGS[int(found.argmax())] == SamplerSetting(0.7)
    assert found.sum() == pytest.approx(1)


def test_tokens_needed_is_the_bound_of_wald() -> None:
    assert tokens_needed(0.01, 0.01) == pytest.approx(math.log(100) / 0.01)
    assert tokens_needed(0.0, 0.01) == math.inf
