"""Which part of the whole change the measured matrices hold, for sentences about what a LoRA keeps of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

from deltarank.results.formatting import listing, percent
from deltarank.results.matrix import MatrixResult, Skipped
from deltarank.tensor_names import EXPERT, ROUTER, kind_of_tensor

NEARLY_WHOLE = 0.99
"""If the measured matrices hold a smaller share of the change, the first sentence says so."""

_OF_LINEAR_LAYERS = (None, EXPERT, ROUTER)
_MOST_NAMED = 3


def measured_share(skipped: Iterable[Skipped]) -> float:
    """The share of the change in all tensors that both checkpoints have."""
    return max(1.0 - math.fsum(each.share for each in skipped if each.share is not None), 0.0)


@dataclass(frozen=True)
class IncludedByName:
    """Measured matrices that belong to no linear layer, such as embeddings and heads: a portable adapter lacks them.

    names  of those that changed, the largest change first
    share  of the change in the measured matrices
    """

    names: tuple[str, ...] = ()
    share: float = 0.0

    @classmethod
    def of(cls, matrices: Sequence[MatrixResult]) -> Self:
        found = sorted((m for m in matrices if m.energy and _is_elsewhere(m.name)), key=lambda m: -m.energy)
        energy = math.fsum(m.energy for m in found)
        whole = math.fsum(m.energy for m in matrices if m.energy)
        return cls(tuple(m.name.removesuffix(".weight") for m in found), energy / whole if whole else 0.0)

    @property
    def listed(self) -> str:
        return listing(list(self.names), most=_MOST_NAMED)

    @property
    def remark(self) -> str:
        """For the end of a clause about what is kept."""
        return f", counting {self.listed}, which a portable adapter leaves out" if self.names else ""


def _is_elsewhere(name: str) -> bool:
    """A matrix of several in one tensor is of experts."""
    return not name.endswith("]") and kind_of_tensor(name) not in _OF_LINEAR_LAYERS


def change_in_words(share: float, included: IncludedByName | None = None) -> str:
    """What is kept or lost, as the end of a sentence: "the change in the weights"."""
    remark = included.remark if included else ""
    if share >= NEARLY_WHOLE:
        return f"the change in the weights{remark}"
    return f"the change in the measured matrices, which hold {percent(share)} of the whole change{remark}"
