"""The noise edges of a matrix: of errors that storing the finetune left, and of those of a quantised base as well."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

from deltarank.checkpoints import Pair
from deltarank.spectra import RoundingNoise, Spectrum

SURELY = 0.5
"""A delta with less than this share of the rounding's energy does not contain the rounding."""


@dataclass(frozen=True)
class NoiseEdges:
    """edge: of the errors that the finetune's storage left in D. base_error: ||W - Q(W)|| / ||W|| of a quantised base.

    with_base  the edge if D contains the base's errors, too: the finetune was trained from what was quantised
    """

    edge: float = 0.0
    base_error: float = 0.0
    with_base: float = 0.0

    @classmethod
    def of(cls, pair: Pair, noise: RoundingNoise) -> Self:
        after, before = pair.finetune.rounding_error, pair.base.rounding_error
        return cls(noise.edge(format_error=after), before, noise.edge(format_error=math.hypot(after, before)))

    def is_in(self, spectrum: Spectrum, energy: float) -> bool:
        """Whether what lies under the edge is large enough to contain the base's errors, of this energy."""
        rank = spectrum.signal_rank(self.with_base)
        return energy > 0 and rank is not None and spectrum.lost(rank) >= SURELY * energy


def new_noise(pair: Pair) -> RoundingNoise:
    return RoundingNoise(has_format=bool(pair.base.storage or pair.finetune.storage))
