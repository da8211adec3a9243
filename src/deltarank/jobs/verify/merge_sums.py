"""Sums over the entries of a tensor that tell whether an adapter was merged into it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class MergeSums:
    """Over the entries of W, of U (W0 in W's dtype), of the merge R, and of L. Energies are squared norms.

    energy, expected     ||W - U||^2 and ||R - U||^2
    residual             ||W - R||^2
    inner                <W - U, R - U>
    along, meant         <W - U, L> and <R - U, L>
    base                 ||U||^2
    moved                entries in which R differs from U
    deviation            the largest |W - R|, in units in the last place of the largest of |U|, |W| and |L|
    """

    energy: float = 0.0
    expected: float = 0.0
    residual: float = 0.0
    inner: float = 0.0
    along: float = 0.0
    meant: float = 0.0
    base: float = 0.0
    moved: int = 0
    deviation: float = 0.0
    entries: int = 0

    def add(self, unmerged: Tensor, stored: Tensor, merged: Tensor, update: Tensor) -> None:
        """Rows of U, W and R in W's dtype, and of L in float32."""
        self.moved += int((merged != unmerged).sum())
        before, after, expected = unmerged.float(), stored.float(), merged.float()
        changed, meant, left = after - before, expected - before, after - expected
        self.energy += _dot(changed, changed)
        self.expected += _dot(meant, meant)
        self.residual += _dot(left, left)
        self.inner += _dot(changed, meant)
        self.along += _dot(changed, update)
        self.meant += _dot(meant, update)
        self.base += _dot(before, before)
        self.entries += stored.numel()
        largest = torch.maximum(torch.maximum(before.abs(), after.abs()), update.abs())
        self.deviation = max(self.deviation, float((left.abs() / _ulp(largest, stored.dtype)).max()))

    @property
    def is_finite(self) -> bool:
        return all(map(math.isfinite, (self.energy, self.expected, self.residual, self.base)))

    @property
    def strength(self) -> float | None:
        """What L is multiplied by in W: <W - U, L> beside the same of a merge at strength 1, which is rounded, too."""
        return self.along / self.meant if self.meant > 0 else None

    @property
    def cosine(self) -> float:
        """Of W - U and R - U; 0 if one of them is zero."""
        size = math.sqrt(self.energy) * math.sqrt(self.expected)
        return self.inner / size if size > 0 else 0.0

    def significance(self, strength: float) -> float:
        """The strength in standard errors, if what W - U has besides the merge were unrelated to it."""
        rest = max(self.energy - 2 * strength * self.inner + strength**2 * self.expected, 0.0)
        error = math.sqrt(rest / self.entries / self.expected) if self.expected > 0 else math.inf
        return abs(strength) / error if error > 0 else math.inf if strength else 0.0


def _dot(one: Tensor, other: Tensor) -> float:
    return float(torch.sum(one * other, dtype=torch.float64))


def _ulp(sizes: Tensor, dtype: torch.dtype) -> Tensor:
    """The unit in the last place of numbers of these sizes."""
    limits = torch.finfo(dtype)
    exponents = torch.frexp(sizes.clamp(min=limits.smallest_normal)).exponent
    return torch.ldexp(torch.full_like(sizes, limits.eps / 2), exponents)
