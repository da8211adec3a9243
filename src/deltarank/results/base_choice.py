"""Which of several bases a finetune came from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any, Self

from deltarank.results.codec import Norm, StoredResult, decode, to_plain
from deltarank.results.formatting import escape, percent
from deltarank.results.notebook_parts import sentences_html, table_html
from deltarank.results.reference import Reference
from deltarank.results.unpaired import NONE_UNPAIRED, Unpaired


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
    unpaired         the matrices that only the finetune or only the candidate has
    """

    reference: Reference
    relative_norm: float | None = None
    norms: Mapping[str, float] = field(default_factory=dict)
    reason: str | None = None
    unpaired: Unpaired = NONE_UNPAIRED

    @property
    def distance(self) -> float:
        """`relative_norm`, and infinity where it is unknown."""
        return math.inf if self.relative_norm is None else self.relative_norm

    def to_plain(self) -> dict[str, Any]:
        return {
            "ref": self.reference.ref,
            "revision": self.reference.revision,
            "relative_norm": self.relative_norm,
            "matrices": dict(self.norms),
            "reason": self.reason,
            "unpaired": to_plain(self.unpaired),
        }


@dataclass(frozen=True)
class BaseChoice(StoredResult):
    """The answer of `which_base`. Files of checkpoints are not stored: a loaded one has references without them."""

    description = "what `deltarank which-base --json` prints"
    cure = "Run `deltarank which-base` again."

    kind: BaseKind
    sentence: str
    finetune: Reference
    candidates: tuple[CandidateBase, ...]
    seed: int = 0

    @cached_property
    def base(self) -> CandidateBase | None:
        """The candidate that the finetune came from: the nearest, if one was found."""
        return min(self.candidates, key=lambda each: each.distance) if self.kind is BaseKind.FOUND else None

    def __repr__(self) -> str:
        return f"<BaseChoice {self.kind.value}: {escape(self.sentence)}>"

    def _repr_html_(self) -> str:
        rows = [
            (each.reference.ref, percent(each.relative_norm, unknown=each.reason or "–")) for each in self.candidates
        ]
        return sentences_html((self.sentence,), table_html(("candidate", "||W - W0|| / ||W0||"), rows))

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

    @classmethod
    def _decoded(cls, text: str | bytes) -> Self:
        stored = decode(_StoredChoice, text)
        candidates = tuple(each.candidate for each in stored.candidates)
        if stored.kind is BaseKind.FOUND and not any(each.relative_norm is not None for each in candidates):
            raise ValueError("a base was found, and no candidate was compared - at `$.candidates`")
        return cls(stored.kind, stored.sentence, stored.finetune, candidates, stored.seed)


@dataclass(frozen=True)
class _StoredCandidate:
    ref: str
    revision: str | None
    relative_norm: Norm | None
    matrices: Mapping[str, Norm]
    reason: str | None
    unpaired: Unpaired = NONE_UNPAIRED

    @property
    def candidate(self) -> CandidateBase:
        reference = Reference(self.ref, self.revision)
        return CandidateBase(reference, self.relative_norm, self.matrices, self.reason, self.unpaired)


@dataclass(frozen=True)
class _StoredChoice:
    kind: BaseKind
    sentence: str
    finetune: Reference
    candidates: tuple[_StoredCandidate, ...]
    seed: int = 0
