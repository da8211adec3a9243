"""How the finetunes of a fleet are related: cosines, duplicates, merges of each other, and other bases in common."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from deltarank.jobs.fleet.delta_fits import Fit, fit_delta, least_squares
from deltarank.jobs.fleet.kinship_sentences import kinship_sentences
from deltarank.jobs.fleet.sketches import SketchStack
from deltarank.results import DeltaFit, DeltaSketch, Duplicates, FleetFinetune, Kinship, VerdictKind, WeightedPart

MERGE, NEAR = 0.1, 0.7
"""The largest residuals of a merge, and of a near merge: there the sum explains half of the energy."""

SLACK = 1.25
"""How much more than rounding is expected to change two finetunes may differ: what is expected is a mean, and the
difference an estimate. An adapter and its merge differ by just what is expected of the merge."""

ROUNDED = 0.25
"""The largest share of the energy that rounding may explain. Where most of a delta is rounding, all are alike."""

COMMON = 0.9
"""The share of the matrices that a finetune must have sketches of."""

BETWEEN = 0.1
"""By how much the cosines with the parts of a near merge exceed those among the parts."""

SAME_BASE = 0.75
"""Two models that are unrelated to W0 have a cosine of about 1/2, since both deltas contain -W0; of one base, of 1."""

DIGITS = 4


def find_kinship(finetunes: Sequence[FleetFinetune], sketches: Mapping[str, DeltaSketch]) -> Kinship | None:
    """The kinship of the finetunes that have sketches; None if fewer than two have.

    Args:
        finetunes: the rows of the fleet.
        sketches: by their names; those of other matrices than most have are left out.
    """
    usable = _comparable({f.name: sketches[f.name] for f in finetunes if f.is_measured and f.name in sketches})
    if len(usable) < 2:
        return None
    family = _Family({f.name: f for f in finetunes if f.name in usable}, SketchStack.of(usable))
    merges, near = family.fits()
    names = family.ordered()
    found = Kinship(
        names=tuple(family.names[i] for i in names),
        cosines=tuple(tuple(family.shown_cosine(i, j) for j in names[:row]) for row, i in enumerate(names)),
        standard_error=float(f"{family.standard_error:.2g}"),
        duplicates=tuple(family.duplicates),
        merges=merges,
        near_merges=near,
        other_bases=tuple(family.other_bases()),
        unsketched=tuple(f.name for f in finetunes if f.is_measured and f.name not in usable),
    )
    return replace(found, sentences=kinship_sentences(found))


def _comparable(sketches: Mapping[str, DeltaSketch]) -> Mapping[str, DeltaSketch]:
    """Those of the length and of the matrices that most have. Some matrices of a finetune may have failed.

    A finetune that stores its experts otherwise than the others has matrices of other names, and other projections.
    """
    kinds = [(sketch.length, frozenset(sketch.matrices)) for sketch in sketches.values()]
    length, usual = max(kinds, key=lambda kind: (kinds.count(kind), len(kind[1])), default=(0, frozenset()))
    return {
        name: sketch
        for name, sketch in sketches.items()
        if sketch.length == length and sketch.matrices.keys() <= usual and len(sketch.matrices) >= COMMON * len(usual)
        if any(sketch.matrices.values())
    }


@dataclass(frozen=True)
class _Family:
    """The finetunes with sketches, by index."""

    rows: Mapping[str, FleetFinetune]
    stack: SketchStack

    @property
    def names(self) -> tuple[str, ...]:
        return self.stack.names

    @cached_property
    def gram(self) -> np.ndarray:
        return self.stack.gram()

    @cached_property
    def standard_error(self) -> float:
        return self.stack.standard_error()

    @cached_property
    def cosines(self) -> np.ndarray:
        norms = np.sqrt(np.diag(self.gram))
        cosines: np.ndarray = np.clip(self.gram / np.outer(norms, norms), -1, 1)
        return cosines

    def shown_cosine(self, i: int, j: int) -> float:
        """1 only of equal sketches."""
        rounded = round(float(self.cosines[i, j]), DIGITS)
        return math.copysign(1 - 10.0**-DIGITS, rounded) if abs(rounded) == 1 and not self._are_equal(i, j) else rounded

    def ordered(self) -> list[int]:
        """Leaves of the tree of average linkage, neighbours as alike as the tree allows."""
        distances = np.maximum(1 - self.cosines, 0)
        np.fill_diagonal(distances, 0)
        tree = linkage(squareform(distances, checks=False), method="average", optimal_ordering=True)
        return [int(i) for i in leaves_list(tree)]

    @cached_property
    def duplicates(self) -> list[Duplicates]:
        groups = _groups(self._are_same, range(len(self.names)))
        return [
            Duplicates(tuple(self.names[i] for i in group), all(self._are_equal(group[0], i) for i in group[1:]))
            for group in groups
        ]

    def _are_same(self, i: int, j: int) -> bool:
        """Whether rounding to the dtypes of both explains the difference."""
        difference = self.gram[i, i] + self.gram[j, j] - 2 * self.gram[i, j]
        floors = [(self.rows[self.names[k]].rounding_floor or 0.0) * self.gram[k, k] for k in (i, j)]
        return self._are_equal(i, j) or bool(0 <= difference <= min(SLACK * sum(floors), ROUNDED * self.gram[i, i]))

    def _are_equal(self, i: int, j: int) -> bool:
        one, other = (self.rows[self.names[k]] for k in (i, j))
        return one.energy == other.energy and all(np.array_equal(each[i], each[j]) for each in self.stack.segments)

    def other_bases(self) -> Iterator[tuple[str, ...]]:
        """Groups of those that are no finetunes of this base, whose deltas have more in common than the base."""
        unrelated = [i for i, name in enumerate(self.names) if self.rows[name].verdict is VerdictKind.UNRELATED]
        for group in _groups(lambda i, j: bool(self.cosines[i, j] >= SAME_BASE), unrelated):
            yield tuple(self.names[i] for i in group)

    def fits(self) -> tuple[tuple[DeltaFit, ...], tuple[DeltaFit, ...]]:
        """The merges, and the near merges. Of each group of duplicates only the first takes part.

        Nor does one that lacks a matrix, whose part of a sum would be read as a change by the others.
        """
        repeated = {name for group in self.duplicates for name in group.names[1:]}
        most = max(row.matrices for row in self.rows.values())
        indices = [i for i, n in enumerate(self.names) if n not in repeated and self.rows[n].matrices == most]
        found = {i: self._fit(i, [j for j in indices if j != i]) for i in indices}
        merges = {i: fit for i, fit in found.items() if fit.residual <= MERGE and self._is_said_once(i, fit)}
        others = [i for i in indices if i not in merges]
        again = {i: self._fit(i, [j for j in others if j != i]) for i in others}
        near = {i: fit for i, fit in again.items() if MERGE < fit.residual <= NEAR and self._is_between(i, fit)}
        return self._described(merges), self._described(near)

    def _fit(self, target: int, others: Sequence[int]) -> Fit:
        return fit_delta(self.gram, target, others, standard_error=self.standard_error)

    def _is_said_once(self, target: int, fit: Fit) -> bool:
        """Of two that are multiples of each other, only the later one is said to be a multiple."""
        return len(fit.weights) > 1 or all(part < target for part in fit.weights)

    def _is_between(self, target: int, fit: Fit) -> bool:
        """Whether it is more alike to each of two or more parts than any two of these are to each other.

        Finetunes with something in common are about as alike to each other as each is to a sum of the others.
        """
        parts = list(fit.weights)
        among = [self.cosines[i, j] for i in parts for j in parts if i < j]
        return bool(among) and bool(self.cosines[target, parts].min() >= max(among) + BETWEEN)

    def _described(self, fits: Mapping[int, Fit]) -> tuple[DeltaFit, ...]:
        return tuple(
            DeltaFit(
                name=self.names[target],
                parts=tuple(
                    WeightedPart(self.names[part], round(weight, DIGITS))
                    for part, weight in sorted(fit.weights.items(), key=lambda item: -item[1])
                ),
                residual=_shown_residual(fit.residual),
                residual_by_matrix=_shown_residual(self._residual_by_matrix(target, list(fit.weights))),
            )
            for target, fit in fits.items()
        )

    def _residual_by_matrix(self, target: int, parts: Sequence[int]) -> float:
        lost = 0.0
        for segment in self.stack.segments:
            rows = segment[[target, *parts]].astype(np.float64)
            gram = rows @ rows.T
            lost += least_squares(gram[1:, 1:], gram[1:, 0], gram[0, 0])[1]
        return float(np.sqrt(min(lost / self.gram[target, target], 1.0)))


def _shown_residual(residual: float) -> float:
    """A residual is never exactly 0 as far as sketches tell."""
    return max(round(residual, 2 * DIGITS), 10.0 ** (-2 * DIGITS))


def _groups(alike: Callable[[int, int], bool], indices: Sequence[int]) -> Iterator[list[int]]:
    """Groups of two or more, each alike to the first of its group."""
    left = list(indices)
    while left:
        first, *rest = left
        group = [first, *(i for i in rest if alike(first, i))]
        left = [i for i in left if i not in group]
        if len(group) > 1:
            yield group
