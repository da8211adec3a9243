"""The sample: the same few matrices of the finetune and of every candidate, read and added up."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, zip_longest

from deltarank.checkpoints import Checkpoint, Pair, pair_checkpoints
from deltarank.errors import CheckpointError, PairingError
from deltarank.jobs.compare import ALIKE
from deltarank.results import CandidateBase
from deltarank.runtime import DeltaReader, ProgressListener, SolverOptions, TimeEstimate
from deltarank.spectra import Sums

_OTHER_MODEL = frozenset({"wrong-base", "nothing-in-common", "nothing-to-measure", "same-checkpoint"})
"""Slugs of pairs that no conversion makes comparable."""


@dataclass
class SampledCandidate:
    """A candidate while its sample is read. Without pairs, it cannot be compared.

    cure    what would make it comparable; "" if it is another model
    """

    result: CandidateBase
    cure: str = ""
    pairs: Mapping[str, Pair] = field(default_factory=dict)
    sums: dict[str, Sums] = field(default_factory=dict)

    def pair_with(self, base: Checkpoint, finetune: Checkpoint, options: SolverOptions) -> None:
        """Finds the matrices of both. A candidate of another shape fails; the others are still compared."""
        self.result = CandidateBase(base.reference)
        try:
            pairing = pair_checkpoints(base, finetune, include=options.include, exclude=options.exclude, experts=True)
        except PairingError as error:
            self.fail(error.message, cure="" if error.slug in _OTHER_MODEL else error.cure)
        else:
            self.pairs = {pair.name: pair for pair in pairing.pairs}
            self.result = replace(self.result, unpaired=pairing.unpaired())

    def fail(self, reason: str, *, cure: str = "") -> None:
        self.pairs, self.sums, self.cure = {}, {}, cure
        self.result = CandidateBase(self.result.reference, reason=reason)

    def read(self, name: str, reader: DeltaReader) -> None:
        """Adds the sums of a matrix."""
        try:
            self.sums[name] = reader.sums(self.pairs[name])
        except CheckpointError as error:
            self.fail(error.message)

    def is_alike(self, reader: DeltaReader) -> bool:
        """Whether the weights are alike in most of the sampled matrices, whatever the size of the difference."""
        try:
            alike = [reader.cosine(self.pairs[name]) >= ALIKE for name in self.result.norms]
        except CheckpointError:
            return False
        return sum(alike) > len(alike) / 2

    def update_norms(self) -> None:
        """States the figures of what has been read so far."""
        norms = {name: norm for name, each in self.sums.items() if (norm := each.relative_norm) is not None}
        whole = sum(self.sums.values(), Sums()).relative_norm
        self.result = replace(self.result, relative_norm=whole, norms=norms)


def shuffled_names(candidates: Sequence[SampledCandidate], seed: int) -> list[str]:
    """Names of the matrices that all comparable candidates have: one of each module in turn, in a random order."""
    generator = random.Random(seed)
    known = [candidate.pairs for candidate in candidates if candidate.pairs]
    most: Mapping[str, Pair] = max(known, key=len)
    common = set.intersection(*(set(pairs) for pairs in known)) or set(most)
    modules: dict[str, list[str]] = {}
    for name in sorted(common):
        modules.setdefault(next(pairs[name].module for pairs in known if name in pairs), []).append(name)
    columns = list(modules.values())
    generator.shuffle(columns)
    for column in columns:
        generator.shuffle(column)
    return [name for name in chain.from_iterable(zip_longest(*columns)) if name is not None]


def read_sample(
    candidates: Sequence[SampledCandidate],
    names: Sequence[str],
    reader: DeltaReader,
    progress: ProgressListener,
    estimate: TimeEstimate,
) -> None:
    """Reads the matrices of these names that have not been read yet, and updates the figures."""
    for name in names:
        unread = [candidate for candidate in candidates if name in candidate.pairs and name not in candidate.sums]
        for candidate in unread:
            progress.began(f"{name} of {candidate.result.reference.short_name}")
            candidate.read(name, reader)
        if unread:
            estimate.add(name, 1.0)
    _leave_out_not_finite(candidates)


def _leave_out_not_finite(candidates: Sequence[SampledCandidate]) -> None:
    """A candidate that holds NaN or Inf fails; a matrix in which the finetune holds them counts for no candidate."""
    for candidate in candidates:
        if not all(math.isfinite(sums.base_energy) for sums in candidate.sums.values()):
            candidate.fail("it contains NaN or Inf")
    bad = {name for candidate in candidates for name, sums in candidate.sums.items() if not sums.is_finite}
    for candidate in candidates:
        candidate.sums |= dict.fromkeys(bad & candidate.sums.keys(), Sums())
        if candidate.pairs:
            candidate.update_norms()
