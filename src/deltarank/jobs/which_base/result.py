"""Which of several candidates a finetune came from: plain numbers and a sentence."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from deltarank.results import Reference


class BaseKind(StrEnum):
    """FOUND: one is nearest. TOO_CLOSE: several are equally near. NONE: the nearest is as far as an unrelated model."""

    FOUND = "found"
    TOO_CLOSE = "too_close"
    NONE = "none"


@dataclass(frozen=True)
class CandidateBase:
    """One candidate.

    relative_norm    ||D|| / ||W0|| over the sample, energies added first; None if it could not be compared
    norms            ||D|| / ||W0|| of each sampled matrix, by its name in the finetune
    reason           why it could not be compared
    """

    reference: Reference
    relative_norm: float | None = None
    norms: Mapping[str, float] = field(default_factory=dict)
    reason: str | None = None

    def to_plain(self) -> dict[str, Any]:
        return {
            "ref": self.reference.ref,
            "revision": self.reference.revision,
            "relative_norm": self.relative_norm,
            "matrices": dict(self.norms),
            "reason": self.reason,
        }


@dataclass(frozen=True)
class BaseChoice:
    """The answer. `base` is the candidate that the finetune came from, if it could be told."""

    kind: BaseKind
    sentence: str
    finetune: Reference
    candidates: tuple[CandidateBase, ...]
    base: CandidateBase | None = None
    seed: int = 0

    @property
    def matrices(self) -> int:
        """The number of matrices read of each candidate that could be compared."""
        return max((len(candidate.norms) for candidate in self.candidates), default=0)

    def to_plain(self) -> dict[str, Any]:
        return {
            "kind": self.kind.value,
            "base": self.base.reference.ref if self.base else None,
            "sentence": self.sentence,
            "finetune": {"ref": self.finetune.ref, "revision": self.finetune.revision},
            "candidates": [candidate.to_plain() for candidate in self.candidates],
            "seed": self.seed,
        }

    def to_json(self) -> str:
        return json.dumps(self.to_plain(), indent=1, allow_nan=False) + "\n"
