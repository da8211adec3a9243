"""How the deltas of a fleet are related, and the sketches from which that is computed."""

from __future__ import annotations

import base64
import binascii
import math
import sys
from array import array
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Self

from msgspec import Meta

from deltarank.results.codec import Count, Share, StoredResult, decode

SKETCH_FORMAT = 1
# 1: the first format (2026-11).

Cosine = Annotated[float, Meta(ge=-1, le=1)]


@dataclass(frozen=True)
class DeltaSketch(StoredResult):
    """The sketches of one finetune's deltas, in the folder of its run: `spectra.sketch_delta` of each matrix.

    length    numbers in the sketch of a matrix; the seed is the CRC-32 of the matrix's name
    matrices  name of each measured matrix -> its sketch, float32, least significant byte first, in base64; "" if it did
              not change
    """

    description = "the sketches of a finetune of a fleet"
    cure = "Remove the folder of that finetune and repeat `deltarank fleet`."
    file_name = "sketch.json"
    readable_format = SKETCH_FORMAT

    length: Count
    matrices: Mapping[str, str]
    format_version: Count = SKETCH_FORMAT

    @classmethod
    def _decoded(cls, text: str | bytes) -> Self:
        sketch = decode(cls, text)
        for name, numbers in sketch.matrices.items():
            check_numbers(name, numbers, sketch.length)
        return sketch


def check_numbers(name: str, numbers: str, length: int) -> None:
    """Raises ValueError unless it is the sketch of a matrix, `length` finite numbers."""
    if not numbers:
        return
    found = array("f")
    with suppress(binascii.Error, ValueError):
        found.frombytes(base64.b64decode(numbers, validate=True))
    if sys.byteorder == "big":
        found.byteswap()
    if len(found) != length:
        raise ValueError(f"the sketch of {name[:100]!r} is not {length} numbers in base64")
    if not math.isfinite(sum(found)):  # in float64, where the sum of finite numbers does not overflow
        raise ValueError(f"the sketch of {name[:100]!r} has numbers that are not finite")


@dataclass(frozen=True)
class Duplicates:
    """Finetunes with the same delta.

    equal  whether all sketches and norms are equal bit for bit. If not, the squared difference is at most what rounding
           to the dtypes of both explains
    """

    names: tuple[str, ...]
    equal: bool


@dataclass(frozen=True)
class WeightedPart:
    """A finetune in a sum of deltas, and its coefficient."""

    name: str
    weight: float


@dataclass(frozen=True)
class DeltaFit:
    """The delta D of a finetune as a sum of others', by least squares with coefficients of at least 0.

    parts              the coefficients, largest first
    residual           ||D - sum|| / ||D||
    residual_by_matrix the same if each matrix has coefficients of its own, as in a merge with weights by layer
    """

    name: str
    parts: tuple[WeightedPart, ...]
    residual: Share
    residual_by_matrix: Share


@dataclass(frozen=True)
class Kinship:
    """How the deltas of the finetunes are related, from their sketches.

    names           in an order in which related ones are neighbours
    cosines         cos(D_i, D_j), a row for each name: those with the names before it
    standard_error  of a cosine near 0, for the pair of finetunes where it is largest; times 1 - cos^2 of others
    duplicates      groups of finetunes with the same delta; further fits are about the first of each
    merges          the finetunes whose delta is a sum of others' up to a residual of 0.1
    near_merges     those where the residual is larger, but most of the energy is explained by two or more others
    other_bases     groups of finetunes that are none of this base, by their size, and that have another base in common
    unsketched      the measured finetunes without sketches, or with those of other matrices than most have
    """

    names: tuple[str, ...]
    cosines: tuple[tuple[Cosine, ...], ...]
    standard_error: float
    duplicates: tuple[Duplicates, ...] = ()
    merges: tuple[DeltaFit, ...] = ()
    near_merges: tuple[DeltaFit, ...] = ()
    other_bases: tuple[tuple[str, ...], ...] = ()
    unsketched: tuple[str, ...] = ()
    sentences: tuple[str, ...] = ()

    def cosine(self, first: str, second: str) -> float:
        """Raises ValueError if a name is not among them."""
        i, j = sorted((self.names.index(first), self.names.index(second)), reverse=True)
        return 1.0 if i == j else self.cosines[i][j]

    def check(self) -> None:
        """Raises ValueError unless each of two or more names has its cosines, and there are sentences."""
        if len(set(self.names)) != len(self.names) or [len(row) for row in self.cosines] != list(
            range(len(self.names))
        ):
            raise ValueError("the cosines are not those of the names - at `$.kinship`")
        if len(self.names) < 2 or not self.sentences:
            raise ValueError("fewer than two names, or no sentence - at `$.kinship`")
