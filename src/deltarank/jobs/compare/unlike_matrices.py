"""Matrices that differ from the base's as unrelated ones do, beside others that are the base's, finetuned."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from deltarank.results import listing, percent

UNRELATED = 0.9
"""From this ||D|| / ||W0|| on, the pair is unrelated: independently trained models differ by about sqrt(2)."""

RELATED = 0.5
"""Up to this ||D|| / ||W0||, a matrix is that of the base, finetuned."""

NOTABLE_ENERGY = 0.01
"""The least share of the change that unlike matrices must hold to be mentioned."""

MOST_NAMED = 4

_OTHER_LAYERS = "Layers were inserted, removed or moved, or trained from scratch"
_OTHER_MATRICES = "They are stored transposed or in another order, were exchanged, or were trained from scratch"


class ComparedMatrix(Protocol):
    """A matrix as `compare` or `extract` measured it."""

    @property
    def name(self) -> str: ...
    @property
    def layer(self) -> int | None: ...
    @property
    def module(self) -> str: ...
    @property
    def energy(self) -> float: ...
    @property
    def relative_norm(self) -> float | None: ...


Groups = Mapping[str, Sequence[ComparedMatrix]]


@dataclass(frozen=True)
class UnlikeMatrices:
    """What is unlike the base, by the names of whole layers and modules where all of their matrices are.

    sizes   ||D|| / ||W0|| by name
    others  that of the matrices that are like the base's
    reason  what the usual causes are
    """

    sizes: Mapping[str, float]
    others: float
    reason: str

    @classmethod
    def of(cls, matrices: Sequence[ComparedMatrix]) -> Self | None:
        """None unless some matrices are unlike the base's and others are like them."""
        known = [matrix for matrix in matrices if matrix.relative_norm is not None]
        unlike = [matrix for matrix in known if (matrix.relative_norm or 0.0) >= UNRELATED]
        like = [matrix for matrix in known if (matrix.relative_norm or 0.0) <= RELATED]
        share = math.fsum(matrix.energy for matrix in unlike) / (math.fsum(matrix.energy for matrix in known) or 1.0)
        if not unlike or not like or share < NOTABLE_ENERGY:
            return None
        layers = _whole_groups(known, unlike, _layer)
        rest = [matrix for matrix in unlike if _layer(matrix) not in layers]
        outside = [matrix for matrix in known if _layer(matrix) not in layers]
        modules = _whole_groups(outside, rest, lambda matrix: matrix.module)
        single = {matrix.name: [matrix] for matrix in rest if matrix.module not in modules}
        groups = {**layers, **modules, **single}
        reason = _OTHER_LAYERS if len(layers) == len(groups) else _OTHER_MATRICES
        return cls({name: _relative_norm(members) for name, members in groups.items()}, _relative_norm(like), reason)

    @property
    def sentence(self) -> str:
        low, high = (percent(pick(self.sizes.values())) for pick in (min, max))
        by = low if low == high else f"{low} to {high}"
        verb = "differs" if len(self.sizes) == 1 else "differ"
        return (
            f"{listing(list(self.sizes), most=MOST_NAMED)} {verb} by {by} of the base's norm, as unrelated matrices "
            f"do, and the others by {percent(self.others)}. {self.reason}: leave them out with --exclude."
        )


def _whole_groups(
    known: Sequence[ComparedMatrix], unlike: Sequence[ComparedMatrix], key: Callable[[ComparedMatrix], str]
) -> Groups:
    """The groups of which every matrix is unlike the base's; "" is the key of no group."""
    groups: dict[str, list[ComparedMatrix]] = {}
    for matrix in known:
        groups.setdefault(key(matrix), []).append(matrix)
    names = {matrix.name for matrix in unlike}
    return {name: group for name, group in groups.items() if name and all(each.name in names for each in group)}


def _layer(matrix: ComparedMatrix) -> str:
    """The name up to the number of the layer: "model.layers.3"; "" outside of layers."""
    before, number, _ = matrix.name.partition(f".{matrix.layer}.")
    return before + number.removesuffix(".") if number and matrix.layer is not None else ""


def _relative_norm(matrices: Sequence[ComparedMatrix]) -> float:
    """||D|| / ||W0|| over these matrices."""
    change = math.fsum(matrix.energy for matrix in matrices)
    base = math.fsum(matrix.energy / matrix.relative_norm**2 for matrix in matrices if matrix.relative_norm)
    return math.sqrt(change / base) if base else 0.0
