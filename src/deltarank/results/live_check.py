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
class LiveCheck:
    """A server's first tokens beside those of the base and of base + adapter. `sentences[0]` is the headline.

    kld_base, kld_adapter    lower bounds of the KL divergence from the server, in nats per token, averaged over the
                             prompts; None where the server lists no log-probabilities
    kld_apart                likewise between base and base + adapter, in the direction with the smaller divergence
    prompts                  how many were compared
    """

    model: str
    url: str
    verdict: LiveVerdict
    kld_base: Nats | None
    kld_adapter: Nats | None
    kld_apart: Nats | None
    prompts: Count
    sentences: tuple[str, ...]
