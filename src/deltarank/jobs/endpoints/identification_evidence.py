"""The evidence of what one endpoint serves: of its sampled text, and of the log-probabilities that it lists.

The lists have an e-value of their own against each candidate: the wealth of bets that the mean lower bound of the KL
divergence from the lists to the candidate is above the tolerance. Where there are lists, a candidate's e-value is the
mean of both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from deltarank.divergence import SETTINGS, CandidateEvidence, log_e_values, tokens_needed
from deltarank.jobs.endpoints.known_models import AnswerScore, neighbour
from deltarank.results import Identification, IdentificationPoint, ServedCandidate, ServedKind

FloatArray = NDArray[np.float64]

FEWEST_TOKENS = 768
"""Of sampled text without lists, before an endpoint is said to serve the only candidate that is left."""

FEWEST_LISTS = 32
"""That do as well, if the text does not look like that of another model."""

_CEILING = 1.0
"""Nats per token at which a distance is cut off: bets need a bound."""

_LARGEST = 1e12
_LEAST, _ROUNDING = 1e-300, 1.2e-16
"""No posterior is 0 or 1."""


@dataclass(frozen=True)
class CandidateName:
    """A candidate as the results show it."""

    name: str
    kind: ServedKind
    rank: int | None


@dataclass
class EndpointEvidence:
    """What one endpoint answered so far.

    apart    the KL divergence from each candidate to each other, (candidates, candidates)
    scores   by candidate and answer
    unread   answers that are left out
    """

    candidates: Sequence[CandidateName]
    apart: FloatArray
    alpha: float
    tolerance: float
    scores: list[list[AnswerScore]] = field(default_factory=list)
    unread: int = 0

    def add(self, scores: Sequence[Sequence[AnswerScore]]) -> None:
        """Of new answers, by candidate."""
        if not self.scores:
            self.scores = [[] for _ in self.candidates]
        for known, new in zip(self.scores, scores, strict=True):
            known.extend(new)

    @property
    def answers(self) -> int:
        return len(self.scores[0]) if self.scores else 0

    @property
    def tokens(self) -> int:
        return sum(len(each.by_setting) for each in self.scores[0]) if self.scores else 0

    def weigh(self) -> Weighed:
        """With at least one answer."""
        return Weighed(self)


@dataclass(frozen=True)
class Weighed:
    """The evidence, weighed."""

    found: EndpointEvidence

    @cached_property
    def _text(self) -> CandidateEvidence:
        return CandidateEvidence([[each.by_setting for each in answers] for answers in self.found.scores])

    @cached_property
    def posterior(self) -> FloatArray:
        """By the text, after each answer: (candidates, answers)."""
        return np.clip(np.exp(self._text.log_posterior), _LEAST, 1 - _ROUNDING)

    @cached_property
    def klds(self) -> FloatArray | None:
        """The mean distance from the lists to each candidate at its best temperature: (candidates,)."""
        rows = [[kld for answer in answers for kld in answer.klds] for answers in self.found.scores]
        return np.asarray(np.mean(rows, axis=1).min(axis=-1)) if rows[0] else None

    @cached_property
    def log_e(self) -> FloatArray:
        """The log of the e-value against each candidate after each answer, at its largest: (candidates, answers)."""
        text = self._text.log_e_excluded
        lists = np.array([self._log_e_of_lists(answers) for answers in self.found.scores])
        both = text if self.klds is None else np.logaddexp(text, lists) - math.log(2)
        return np.maximum.accumulate(both, axis=1)

    def _log_e_of_lists(self, answers: Sequence[AnswerScore]) -> FloatArray:
        """The smallest over the temperatures, as of the text: (answers,)."""
        distances = np.array([kld for answer in answers for kld in answer.klds])
        if not len(distances):
            return np.zeros(len(answers))
        share, tolerance = np.clip(distances / _CEILING, 0, 1), self.found.tolerance / _CEILING
        wealth = np.min([log_e_values(each, tolerance) for each in share.T], axis=0)
        ends = np.cumsum([len(each.klds) for each in answers])
        return np.where(ends > 0, wealth[np.maximum(ends, 1) - 1], 0.0)

    @cached_property
    def is_excluded(self) -> list[bool]:
        return [bool(each) for each in self.log_e[:, -1] >= math.log(1 / self.found.alpha)]

    @property
    def left(self) -> list[int]:
        return [i for i, is_excluded in enumerate(self.is_excluded) if not is_excluded]

    @property
    def is_decided(self) -> bool:
        """One candidate may be left before the text of a model that is no candidate had time to show.

        Lists show it sooner, but a host may list one model and write with another.
        """
        is_enough = self._lists >= FEWEST_LISTS or self.found.tokens >= FEWEST_TOKENS
        return not self.left or (len(self.left) == 1 and is_enough and not self.is_surprising)

    @property
    def _lists(self) -> int:
        return sum(len(each.klds) for each in self.found.scores[0])

    @property
    def is_surprising(self) -> bool:
        """Whether the text fits the best candidate at a temperature above 1 best, as text of another model does."""
        if self.best is None:
            return False
        setting = self._text.setting_posterior(self.best)
        return float(setting[[each.temperature > 1 for each in SETTINGS]].sum()) > 0.5

    @property
    def stays_open(self) -> str | None:
        """Why more text will not decide, as a clause; None: it may."""
        if len(self.left) == 1 and self.found.tokens >= FEWEST_TOKENS and self.is_surprising:
            return "the text is less probable than that model's own at temperature 1, as text of another model is"
        return None

    def likeliest(self, among: Sequence[int]) -> int:
        """By the lists where there are any, else by the text."""
        order = self.posterior[:, -1] if self.klds is None else -self.klds
        return max(among, key=lambda i: float(order[i]))

    @property
    def nearest(self) -> int:
        return self.likeliest(range(len(self.found.candidates)))

    @property
    def best(self) -> int | None:
        return self.likeliest(self.left) if self.left else None

    def tokens_to_tell(self) -> float:
        """From the best candidate the one of those left that is easiest to tell: ln(1 / alpha) / KLD."""
        others = [i for i in self.left if i != self.best]
        needed = [tokens_needed(float(self.found.apart[self.best, i]), self.found.alpha) for i in others]
        return min(needed, default=0.0)

    def to_results(self, stopped: str | None, sentences: Sequence[str] = ()) -> Identification:
        names = [each.name for each in self.found.candidates]
        setting = self._text.setting_posterior(self.nearest)
        likeliest = int(setting.argmax())
        return Identification(
            candidates=tuple(map(self._candidate, range(len(names)))),
            best=None if self.best is None else names[self.best],
            decided=self.is_decided,
            none_of_these=not self.left,
            nearest=names[self.nearest],
            answers=self.found.answers,
            tokens=self.found.tokens,
            listed=self._lists,
            unread=self.found.unread,
            sampler=str(SETTINGS[likeliest]),
            sampler_probability=float(setting[likeliest]),
            alpha=self.found.alpha,
            stopped=stopped,
            sentences=tuple(sentences),
            evidence=tuple(self._points()),
        )

    def _candidate(self, i: int) -> ServedCandidate:
        each = self.found.candidates[i]
        nearest, kld, needed = neighbour(self.found.apart, i, self.found.alpha)
        return ServedCandidate(
            name=each.name,
            kind=each.kind,
            rank=each.rank,
            log_likelihood=float(self._text.log_marginals[i, -1]),
            posterior=float(self.posterior[i, -1]),
            log_e_value=_bounded(self.log_e[i, -1]),
            excluded=self.is_excluded[i],
            kld=None if self.klds is None else float(self.klds[i]),
            nearest=None if nearest is None else self.found.candidates[nearest].name,
            nearest_kld=kld,
            tokens_needed=needed if needed is not None and math.isfinite(needed) else None,
            nearest_log_e_value=None if nearest is None else _bounded(self._text.log_e_of_pair(i, nearest)),
        )

    def _points(self) -> list[IdentificationPoint]:
        tokens = np.cumsum([len(each.by_setting) for each in self.found.scores[0]])
        return [
            IdentificationPoint(
                int(tokens[i]), tuple(self.posterior[:, i].tolist()), tuple(map(_bounded, self.log_e[:, i]))
            )
            for i in range(len(tokens))
        ]


def _bounded(value: float) -> float:
    return float(min(max(value, -_LARGEST), _LARGEST))
