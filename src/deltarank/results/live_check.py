"""Whether a running server applies an adapter."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from msgspec import Meta

from deltarank.results.codec import Count

Nats = Annotated[float, Meta(ge=0, le=1e6)]


class LiveVerdict(StrEnum):
    """What a server answers as: base + adapter, the base alone, neither; or it cannot be told."""

    ADAPTER = "adapter"
    BASE = "base"
    NEITHER = "neither"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class LiveText:
    """Prompts on which the greedy tokens of base and base + adapter differ, by whose token the server gave."""

    adapter: Count
    base: Count
    neither: Count


@dataclass(frozen=True)
class LiveCheck:
    """A server's first tokens beside those of the base and of base + adapter. `sentences[0]` is the headline.

    kld_base, kld_adapter    lower bounds of the KL divergence from the server, in nats per token, averaged over the
                             prompts; None where the server lists no log-probabilities
    kld_apart                likewise between base and base + adapter, in the direction with the smaller divergence
    strength                 the share of the adapter's change of the log-probabilities that the server shows: 0 for the
                             base, 1 for base + adapter; None where it lists none
    tolerance                nats per token within which the server counts as near
    prompts                  how many were compared
    text                     what its greedy tokens say, beside its lists or without them; None: nothing was asked
    """

    model: str
    url: str
    verdict: LiveVerdict
    kld_base: Nats | None
    kld_adapter: Nats | None
    kld_apart: Nats | None
    strength: float | None
    tolerance: Nats
    prompts: Count
    sentences: tuple[str, ...]
    text: LiveText | None = None
