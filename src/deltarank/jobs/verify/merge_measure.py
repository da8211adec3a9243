"""Measures one tensor of a merged checkpoint: whether an adapter was merged into it, and how."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from torch import Tensor

from deltarank.adapters import Change, LoraAdapter
from deltarank.checkpoints import Pair, read_chunks
from deltarank.jobs.verify.measure import FitTask, Target
from deltarank.jobs.verify.merge_sums import MergeSums
from deltarank.jobs.verify.replays import Merger, Replay, replays
from deltarank.results import HELD, MergedTensor, MergeFit, Outcome, TensorChange
from deltarank.runtime import TENSOR_FAILURES, SolverOptions, failure_outcome

MOST_ULPS = 2.0
"""How far an entry may be from the merge if only rounding differs, in units in the last place: the product, the scaled
product and the sum may each be rounded to the stored dtype, by half a unit each, and the result once more."""

ULPS_PER_RANK = 0.125
"""What is allowed in addition where products are summed in the stored dtype itself, float32."""

CLEAR = 0.25
"""The share of the merge's energy that rounding may leave unexplained, for a tensor to hold the merge."""

SAME_STRENGTH = 0.1
MOST_SIGNIFICANCE, LEAST_COSINE = 10.0, 0.1
"""From these on, the adapter's change is in a tensor that has other changes, too."""

FORMAT_SLACK = 2.0
"""By how much the energy of a quantised format's errors may exceed what is expected of it."""

_SIMPLE_STRENGTHS = 64


class MergeMeasurer:
    """Measures one tensor after another, in one thread.

    Args:
        changes: what the adapter changes, by tensor name.
    """

    def __init__(self, adapter: LoraAdapter, changes: Mapping[str, Sequence[Change]], options: SolverOptions) -> None:
        self._adapter, self._changes = adapter, changes
        self._device = options.torch_device

    def results(self, tasks: Sequence[FitTask]) -> list[MergedTensor]:
        return [self.result(task.pair) for task in tasks]

    def result(self, target: Target) -> MergedTensor:
        """A tensor that cannot be read or computed gives a row with that outcome."""
        changes = self._changes.get(target.name, ())
        row = _empty_row(target, changes)
        try:
            pass_ = _TensorPass(target, self._device)
            if not changes:
                return _untouched(row, pass_)
            return _touched(row, pass_, Merger(self._adapter, changes, self._device))
        except TENSOR_FAILURES as error:
            outcome, reason = failure_outcome(error)
            return replace(row, outcome=outcome, reason=reason)


@dataclass(frozen=True)
class _TensorPass:
    """A tensor of both checkpoints, which may be read several times."""

    target: Target
    device: torch.device

    @property
    def format_error(self) -> float:
        """The energy of the errors of quantised formats, as a share of ||W0||^2; 0 if neither side is quantised."""
        return self.target.base.rounding_error**2 + self.target.finetune.rounding_error**2

    @property
    def is_plain(self) -> bool:
        return self.target.finetune.storage is None

    @property
    def stored(self) -> torch.dtype:
        return self.target.finetune.dtype

    @property
    def dtypes(self) -> list[torch.dtype]:
        """W0 may have been rounded to any of these before it was stored."""
        return list(dict.fromkeys((self.stored, *(way.dtype for way in self.replays()))))

    def replays(self) -> list[Replay]:
        return replays(self.target.base.dtype, self.stored)

    def chunks(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        for first, base, stored in read_chunks(self.target.base, self.target.finetune):
            yield first, base.to(self.device), stored.to(self.device)

    def has_base_numbers(self) -> bool:
        """Whether W is W0, rounded to one of the dtypes or not. -0 equals 0."""
        dtypes = self.dtypes
        for _, base, stored in self.chunks():
            dtypes = [dtype for dtype in dtypes if torch.equal(base.to(dtype).to(self.stored), stored)]
            if not dtypes:
                return False
        return True

    def is_merge(self, merger: Merger, way: Replay) -> bool:
        """Whether W has the numbers of this way to merge. -0 equals 0."""
        return all(
            torch.equal(merger.merged(first, base, way).to(self.stored), stored)
            for first, base, stored in self.chunks()
        )

    def mismatches(self, merger: Merger, ways: Sequence[Replay], strength: float = 1.0) -> list[int]:
        """The entries in which W differs from each way to merge, bit for bit."""
        counts = [0] * len(ways)
        for first, base, stored in self.chunks():
            for i, way in enumerate(ways):
                counts[i] += _differing(merger.merged(first, base, way, strength).to(self.stored), stored)
        return counts

    def sums(self, merger: Merger, strength: float = 1.0) -> tuple[MergeSums, int]:
        """Sums beside the merge in float32, and the entries in which W differs from the commonest way to merge."""
        sums, different, plain, common = MergeSums(), 0, Replay("", torch.float32), self.replays()[0]
        for first, base, stored in self.chunks():
            different += _differing(merger.merged(first, base, common, strength).to(self.stored), stored)
            merged = merger.merged(first, base, plain, strength).to(self.stored)
            sums.add(base.to(self.stored), stored, merged, strength * merger.update(first, base))
        return sums, different


def _differing(one: Tensor, other: Tensor) -> int:
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[one.element_size()]
    return int((one.contiguous().view(integers) != other.contiguous().view(integers)).sum())


def _untouched(row: MergedTensor, tensor: _TensorPass) -> MergedTensor:
    """A tensor that the adapter does not change: the base's numbers, or others."""
    counts, energy, size = dict.fromkeys(tensor.dtypes, 0), 0.0, 0.0
    for _, base, stored in tensor.chunks():
        for dtype in counts:
            counts[dtype] += _differing(base.to(dtype).to(tensor.stored), stored)
        energy += float((stored.double() - base.to(tensor.stored).double()).square().sum())
        size += float(base.double().square().sum())
    if not (math.isfinite(energy) and math.isfinite(size)):
        return replace(row, outcome=Outcome.NOT_FINITE, reason="a checkpoint contains NaN or Inf here")
    mismatches = min(counts.values())
    is_same = mismatches == 0 or energy <= FORMAT_SLACK * tensor.format_error * size
    fit = MergeFit.UNCHANGED if is_same else MergeFit.CHANGED
    return replace(row, fit=fit, mismatches=mismatches, energy=0.0 if is_same else energy)


def _touched(row: MergedTensor, tensor: _TensorPass, merger: Merger) -> MergedTensor:
    row, sums = _beside_merge(row, tensor, merger, 1.0)
    if not sums.is_finite:
        return replace(row, outcome=Outcome.NOT_FINITE, reason="a checkpoint or the adapter contains NaN or Inf here")
    if tensor.is_plain and tensor.has_base_numbers():
        return _with_base_numbers(row, tensor, merger)
    row = replace(row, energy=sums.energy)
    fit = _fit(row, tensor, sums, merger)
    if fit is not None:
        return replace(row, fit=fit, strength=1.0 if fit in HELD else None)
    return _at_other_strength(row, tensor, sums, merger)


def _with_base_numbers(row: MergedTensor, tensor: _TensorPass, merger: Merger) -> MergedTensor:
    """It never holds the adapter. Whether it lacks it cannot be told if one way to merge leaves the base's numbers."""
    may_hold = any(tensor.is_merge(merger, way) for way in tensor.replays())
    return replace(row, fit=MergeFit.VANISHED if may_hold else MergeFit.ABSENT)


def _beside_merge(
    row: MergedTensor, tensor: _TensorPass, merger: Merger, strength: float
) -> tuple[MergedTensor, MergeSums]:
    """The row with the figures of a merge at this strength, by the way that comes nearest."""
    sums, different = tensor.sums(merger, strength)
    deviation = None if tensor.format_error else sums.deviation
    row = replace(row, moved=sums.moved, deviation=deviation, residual=sums.residual)
    if not (tensor.is_plain and sums.is_finite):
        return row, sums
    ways = tensor.replays()
    counts = tensor.mismatches(merger, ways, strength) if different else [0]
    mismatches, way = min(zip(counts, ways, strict=False), key=lambda each: each[0])
    return replace(row, replay=way.name, mismatches=mismatches), sums


def _fit(row: MergedTensor, tensor: _TensorPass, sums: MergeSums, merger: Merger) -> MergeFit | None:
    """How W fits the merge at strength 1; None if it does not."""
    if not sums.moved:
        return MergeFit.VANISHED if row.mismatches == 0 or not sums.energy else MergeFit.CHANGED
    if row.mismatches == 0:
        return MergeFit.EXACT
    if tensor.format_error:
        return _fit_of_quantised(tensor.format_error * sums.base, sums)
    return MergeFit.ROUNDING if _is_rounding(tensor, sums, merger) else None


def _is_rounding(tensor: _TensorPass, sums: MergeSums, merger: Merger) -> bool:
    most = MOST_ULPS + (ULPS_PER_RANK * merger.rank if tensor.stored.itemsize > 2 else 0.0)
    return sums.deviation <= most and sums.residual <= CLEAR * sums.expected


def _fit_of_quantised(format_energy: float, sums: MergeSums) -> MergeFit | None:
    """Where errors of a quantised format are expected, they decide what can be seen."""
    if sums.residual > FORMAT_SLACK * (format_energy + 1e-6 * sums.expected):
        return None
    strength = sums.inner / sums.expected
    is_seen = sums.significance(1.0) >= MOST_SIGNIFICANCE
    if not is_seen:
        return MergeFit.VANISHED
    return MergeFit.ROUNDING if abs(strength - 1) <= SAME_STRENGTH else None


def _at_other_strength(row: MergedTensor, tensor: _TensorPass, sums: MergeSums, merger: Merger) -> MergedTensor:
    """A tensor that does not hold the merge at strength 1."""
    absent = replace(row, fit=MergeFit.ABSENT)
    found = sums.strength
    if found is None or row.change is TensorChange.WHOLE or sums.significance(found) < MOST_SIGNIFICANCE:
        return absent
    for strength in _candidates(found, merger.rank):
        held = _held_at(row, tensor, strength, merger)
        if held is not None:
            return held
    if abs(found - 1) <= SAME_STRENGTH and sums.cosine >= LEAST_COSINE:
        return replace(row, fit=MergeFit.MIXED, strength=round(found, 4))
    return absent


def _candidates(found: float, rank: int) -> list[float]:
    """Strengths that mistakes with alpha and rank make, near the one found; and that itself."""
    root = math.sqrt(rank) if rank else 1.0
    near = [float(Fraction(found * by).limit_denominator(_SIMPLE_STRENGTHS)) / by for by in (1.0, root, 1 / root)]
    simple = [strength for strength in near if strength and abs(strength / found - 1) <= 0.02]
    return list(dict.fromkeys((*simple, found)))


def _held_at(row: MergedTensor, tensor: _TensorPass, strength: float, merger: Merger) -> MergedTensor | None:
    row, sums = _beside_merge(row, tensor, merger, strength)
    row = replace(row, strength=strength)
    if row.mismatches == 0 or _fit(row, tensor, sums, merger) is MergeFit.ROUNDING:
        return replace(row, fit=MergeFit.STRENGTH)
    explained = sums.residual <= CLEAR**2 * sums.expected and sums.residual <= CLEAR**2 * sums.energy
    return replace(row, fit=MergeFit.STRENGTH) if explained and abs(strength - 1) > SAME_STRENGTH else None


def _empty_row(target: Target, changes: Sequence[Change]) -> MergedTensor:
    loras = [change.placement.part.is_lora for change in changes]
    change = TensorChange.NONE if not loras else TensorChange.LORA if all(loras) else TensorChange.WHOLE
    return MergedTensor(
        name=target.name,
        layer=target.layer if isinstance(target, Pair) else None,
        module=target.module if isinstance(target, Pair) else target.name.removesuffix(".weight"),
        shape=tuple(target.shape),
        outcome=Outcome.MEASURED,
        change=change,
    )
