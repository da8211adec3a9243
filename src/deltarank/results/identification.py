"""Which of several known models an endpoint serves, by the text that it samples and the log-probabilities it lists."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from msgspec import Meta

from deltarank.results.codec import Count, Rank, Share

Nats = Annotated[float, Meta(ge=-1e12, le=1e12)]


class ServedKind(StrEnum):
    """RANK: base + rank-r delta; YARDSTICK: the finetune, quantised."""

    BASE = "base"
    RANK = "rank"
    ADAPTER = "adapter"
    FINETUNE = "finetune"
    YARDSTICK = "yardstick"


@dataclass(frozen=True)
class ServedCandidate:
    """A model that the endpoint may serve.

    log_likelihood   of the sampled text, in nats: the mean likelihood over common settings of the sampler
    posterior        from a uniform prior over the candidates, by the text alone
    log_e_value      the log of the largest e-value so far that this model is not served, by text and lists
    excluded         whether that reached 1 / alpha
    kld              mean lower bound of the KL divergence from the listed log-probabilities to the model's, in nats per
                     token; None: none are listed
    nearest          the candidate that it is hardest to tell from; `nearest_kld`, the KL divergence to it in nats per
                     token, and `tokens_needed`, ln(1 / alpha) / KLD; None: infinite
    nearest_log_e_value  the log of the likelihood ratio, by the text, of this model to `nearest` with the setting of
                     the sampler that suits it best: an e-value against `nearest`, had these two been chosen beforehand
    """

    name: str
    kind: ServedKind
    rank: Rank | None
    log_likelihood: Nats
    posterior: Share
    log_e_value: Nats
    excluded: bool
    kld: float | None = None
    nearest: str | None = None
    nearest_kld: float | None = None
    tokens_needed: float | None = None
    nearest_log_e_value: Nats | None = None


@dataclass(frozen=True)
class IdentificationPoint:
    """After one more answer: the sampled tokens so far; of each candidate the posterior and the log of the e-value."""

    tokens: Count
    posterior: tuple[Share, ...]
    log_e_values: tuple[Nats, ...]


@dataclass(frozen=True)
class Identification:
    """What one endpoint serves.

    best             the candidate that is left, or else the likeliest of those that are; None if none is left
    decided          whether exactly one is left, after enough text, or none
    none_of_these    whether all candidates are excluded
    nearest          the likeliest candidate, excluded or not; by the listed log-probabilities where there are any
    answers, tokens  of the endpoint that were scored; `listed`, tokens of which log-probabilities are listed
    unread           answers that are left out: empty, or their tokens cannot be known
    sampler          the likeliest setting of the sampler for `nearest`, and its probability
    stopped          why no more was asked, as a clause; None: it is decided
    """

    candidates: tuple[ServedCandidate, ...]
    best: str | None
    decided: bool
    none_of_these: bool
    nearest: str
    answers: Count
    tokens: Count
    listed: Count
    unread: Count
    sampler: str
    sampler_probability: Share
    alpha: Share
    stopped: str | None
    sentences: tuple[str, ...]
    evidence: tuple[IdentificationPoint, ...] = ()

    def named(self, name: str) -> ServedCandidate:
        return next(each for each in self.candidates if each.name == name)

    @property
    def left(self) -> tuple[ServedCandidate, ...]:
        """The candidates that are not excluded."""
        return tuple(each for each in self.candidates if not each.excluded)
