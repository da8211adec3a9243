"""How often the served model is excluded, and a model that is no candidate is found to be none: simulated texts.

    python benchmarks/the_served_model_is_seldom_excluded.py [runs]

Candidates are distributions over 50 words with logits of N(0, 2^2) in common and N(0, change^2) of their own at each
token; texts of 240 tokens in answers of 12, sampled with several settings. The rule of exclusion is that of
`deltarank endpoints --weights`, looked at after every answer.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

import numpy as np
import torch
from scipy.stats import binomtest

from deltarank.divergence import CandidateEvidence, SamplerSetting, log_probabilities_by_setting

WORDS, TOKENS, ANSWER, CANDIDATES, ALPHA = 50, 240, 12, 4, 0.01
SERVED = (SamplerSetting(), SamplerSetting(0.7), SamplerSetting(top_k=20), SamplerSetting(0.75))


def logits(run: int, model: int, change: float) -> torch.Tensor:
    """(tokens, words)."""
    shared = 2 * np.random.default_rng([run, 0]).standard_normal((TOKENS, WORDS))
    return torch.tensor(shared + change * np.random.default_rng([run, 1, model]).standard_normal((TOKENS, WORDS)))


def sampled(row: torch.Tensor, setting: SamplerSetting, run: int) -> torch.Tensor:
    scaled = row / setting.temperature
    if setting.top_k:
        scaled = scaled.masked_fill(scaled < scaled.topk(setting.top_k, -1).values[:, -1:], -torch.inf)
    generator = torch.Generator().manual_seed(run)
    return torch.multinomial(torch.softmax(scaled, -1), 1, generator=generator)[:, 0]


def excluded(models: Sequence[torch.Tensor], text: torch.Tensor) -> list[bool]:
    """Of each candidate, whether it ever was."""
    scores = [log_probabilities_by_setting(each, text) for each in models]
    found = CandidateEvidence([[each[i : i + ANSWER] for i in range(0, TOKENS, ANSWER)] for each in scores])
    return [bool(each) for each in found.log_e_excluded.max(axis=1) >= math.log(1 / ALPHA)]


def share(number: int, runs: int) -> str:
    interval = binomtest(number, runs).proportion_ci()
    return f"{100 * number / runs:.1f} % ({100 * interval.low:.1f} to {100 * interval.high:.1f})"


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    torch.set_num_threads(1)
    print("| sampler | change | the served one is excluded (95 %) | found | another model is none of these |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for setting in SERVED:
        for change in (0.2, 0.5, 1.0) if setting.is_plain else (0.5,):
            wrong = right = none = 0
            for run in range(runs):
                models = [logits(run, model, change) for model in range(CANDIDATES + 1)]
                found = excluded(models[:-1], sampled(models[0], setting, run))
                wrong += found[0]
                right += found == [False, *[True] * (CANDIDATES - 1)]
                none += all(excluded(models[:-1], sampled(models[-1], setting, run)))
            print(
                f"| {setting} | {change:g} | {share(wrong, runs)} | {share(right, runs)} | {share(none, runs)} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
