"""Kinds of tensors that servers treat differently: norms, biases, embeddings, routers, experts, the output head."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from deltarank.servers.data import load_data
from deltarank.system import compile_globs

EXPERT, ROUTER = "expert", "router"
"""Kinds that adapters treat in a way of their own."""


@dataclass(frozen=True)
class TensorKind:
    """One kind: its key, its plural for messages, and the names of tensors that belong to it."""

    kind: str
    words: str
    patterns: tuple[re.Pattern[str], ...]


def kind_of_tensor(name: str) -> str | None:
    """ "norm", "bias", "lm_head", "embedding", ROUTER, EXPERT, ...; None for a plain linear weight."""
    return next((k.kind for k in _kinds() if any(pattern.match(name) for pattern in k.patterns)), None)


def kind_in_words(kind: str) -> str:
    """The plural of a kind, for messages: "norm" -> "norms". An unknown kind is returned unchanged."""
    return next((k.words for k in _kinds() if k.kind == kind), kind)


@cache
def _kinds() -> tuple[TensorKind, ...]:
    return tuple(TensorKind(row["kind"], row["words"], compile_globs(row["names"])) for row in load_data()["kinds"])
