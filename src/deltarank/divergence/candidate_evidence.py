"""Which of several known models wrote a text: likelihoods, a posterior, and e-values that exclude models.

A model's likelihood is taken under each setting of a sampler (`sampler_settings.py`). Its marginal likelihood is the
mean over the settings, weighted with their prior.

The hypothesis "candidate j wrote the text, with one of the settings" has an e-value: the smallest over its settings of

    0.9 (mean marginal likelihood of all candidates) / (likelihood of j) + 0.1 (misfit of j).

The first is a likelihood ratio against a mixture. The second is the wealth of somebody who bets that other
distributions q predict the tokens better than j: a mean over b and q of the products of 1 - b + b q(x) / p(x), where q
is j itself at a higher temperature (the tokens surprise j more than its own would), or the mean of all candidates at
each token (the text is akin to several). Under the hypothesis each factor has expectation 1, so the e-value is valid
whenever one stops (Ville 1939): the true candidate is ever excluded, at 1 / alpha, with probability alpha at most. If
all are excluded, the text fits none of them. A maximum over nuisance parameters in the denominator: universal inference
(Wasserman, Ramdas and Balakrishnan 2020).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.special import logsumexp

from deltarank.divergence.arrays import FloatArray
from deltarank.divergence.sampler_settings import LOG_PRIOR, SETTINGS, SamplerSetting

_SHARE_OF_MISFIT = 0.1
_BETS = (0.01, 0.03, 0.1, 0.3, 1.0)
_FLATTER = tuple(SETTINGS.index(SamplerSetting(each)) for each in (1.5, 2.0))
_MIXED = tuple(SETTINGS.index(SamplerSetting(each)) for each in (0.8, 1.0))
"""The settings of what is bet on: of the candidate itself, and of the mean of all."""


@dataclass(frozen=True)
class CandidateEvidence:
    """The text so far.

    scores           by candidate and answer, the log-probabilities of its tokens: (tokens, settings)
    """

    scores: Sequence[Sequence[FloatArray]]

    @cached_property
    def log_likelihoods(self) -> FloatArray:
        """After each answer, by setting: (candidates, answers, settings)."""
        return np.array([self._after_answers(each) for each in self._tokens])

    @cached_property
    def _tokens(self) -> FloatArray:
        """(candidates, tokens, settings)."""
        return np.array([np.concatenate(answers) for answers in self.scores])

    def _after_answers(self, steps: FloatArray) -> FloatArray:
        """Sums over the tokens so far: (tokens, settings) to (answers, settings)."""
        ends = np.cumsum([len(each) for each in self.scores[0]])
        return np.asarray(np.cumsum(steps, axis=0)[ends - 1])

    @cached_property
    def log_marginals(self) -> FloatArray:
        """After each answer: (candidates, answers)."""
        return np.asarray(logsumexp(self.log_likelihoods + LOG_PRIOR, axis=-1))

    @cached_property
    def log_posterior(self) -> FloatArray:
        """Of a uniform prior over the candidates, after each answer: (candidates, answers)."""
        return np.asarray(self.log_marginals - logsumexp(self.log_marginals, axis=0))

    @cached_property
    def log_e_excluded(self) -> FloatArray:
        """The log of the e-value against each candidate after each answer: (candidates, answers)."""
        mixture = logsumexp(self.log_marginals, axis=0) - math.log(len(self.scores))
        ratios = mixture[None, :, None] - self.log_likelihoods
        misfits = np.array([self._log_misfit(each) for each in self._tokens])
        by_setting = np.logaddexp(
            math.log(1 - _SHARE_OF_MISFIT) + ratios,
            math.log(_SHARE_OF_MISFIT) + misfits,
        )
        return np.asarray(by_setting.min(axis=-1))

    def log_e_of_pair(self, candidate: int, rival: int) -> float:
        """The log of the likelihood ratio of a candidate to a rival with whichever setting makes the text likeliest.

        For two candidates that were chosen beforehand, an e-value that the rival is not served.
        """
        return float(self.log_marginals[candidate, -1] - self.log_likelihoods[rival, -1].max())

    def setting_posterior(self, candidate: int) -> FloatArray:
        """Of each setting, if this candidate wrote the whole text: (settings,)."""
        joint = self.log_likelihoods[candidate, -1] + LOG_PRIOR
        return np.asarray(np.exp(joint - logsumexp(joint)))

    def _log_misfit(self, own: FloatArray) -> FloatArray:
        """The log of the wealth of the bets against each setting, after each answer: (answers, settings).

        Args:
            own: the candidate's log-probabilities, (tokens, settings).
        """
        others = [*(own[:, i] for i in _FLATTER), *(self._mean_of_all[:, i] for i in _MIXED)]
        wealth = [self._after_answers(_log_steps(other[:, None] - own, bet)) for other in others for bet in _BETS]
        return np.asarray(logsumexp(wealth, axis=0) - math.log(len(wealth)))

    @cached_property
    def _mean_of_all(self) -> FloatArray:
        """The log of the candidates' mean probability of each token, (tokens, settings)."""
        return np.asarray(logsumexp(self._tokens, axis=0) - math.log(len(self.scores)))


def _log_steps(log_ratio: FloatArray, bet: float) -> FloatArray:
    """log(1 - b + b q / p), by log(q / p)."""
    if bet == 1:
        return log_ratio
    return np.asarray(np.logaddexp(math.log1p(-bet), math.log(bet) + log_ratio))


def uniform_posterior(candidates: int) -> FloatArray:
    """Before any text."""
    return np.full(candidates, 1 / candidates)


def tokens_needed(kld: float, alpha: float) -> float:
    """ln(1 / alpha) / KLD: after so many tokens on average, the likelihood ratio of two models reaches 1 / alpha."""
    return math.inf if kld <= 0 else math.log(1 / alpha) / kld
