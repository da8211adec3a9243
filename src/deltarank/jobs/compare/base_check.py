"""A quick look at a few matrices before a long run: can this be the base that the finetune was trained from?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from deltarank.checkpoints import Checkpoint, Pair
from deltarank.errors import CheckpointError
from deltarank.jobs.compare.unlike_matrices import UNRELATED
from deltarank.results import MatrixResult, percent
from deltarank.runtime import DeltaReader, Plan

PROBES = 3

ALIKE = 0.2
"""The weights W of a finetune have this cosine with W0, or more, up to ||D|| = 4.9 ||W0||; unrelated ones about 0."""

MOST_PROBED = 0.02
"""The share of the bytes of a streamed run that may be read twice for this check."""


def base_warning(
    plan: Plan,
    reader: DeltaReader,
    finished: Mapping[str, MatrixResult],
    checkpoints: tuple[Checkpoint, Checkpoint],
) -> str | None:
    """A warning if every matrix tried differs from the base's by about its own size; else None.

    Args:
        finished: results of an earlier process: these matrices are not read again.
    """
    if any(len(step.pair.pieces) == 1 for step in plan.steps):  # both checkpoints share a file
        return None
    pairs = _pairs_to_try(plan, checkpoints)
    norms = [norm for pair in pairs if (norm := _relative_norm(pair, reader, finished))]
    if not norms or min(norms) < UNRELATED or _are_alike(pairs, reader):
        return None
    return (
        f"the delta is as large as the weights ({percent(min(norms))} of the base's size or more in "
        f"{len(norms)} of {len(pairs)} matrices tried): is this the base that the finetune was trained from? "
        "If not, stop here and give the right base."
    )


def _pairs_to_try(plan: Plan, checkpoints: tuple[Checkpoint, Checkpoint]) -> list[Pair]:
    """Small matrices, since they are read twice; only one where that would be much of what is streamed."""
    most = min(10 * PROBES, max(len(plan.steps) // 3, PROBES))
    pairs = sorted((step.pair for step in plan.steps), key=lambda pair: pair.nbytes)[:most]
    chosen = pairs[:: max(len(pairs) // PROBES, 1)][:PROBES]
    is_streamed = any(checkpoint.traffic is not None for checkpoint in checkpoints)
    if is_streamed and sum(pair.nbytes for pair in chosen) > MOST_PROBED * plan.read_bytes:
        return chosen[:1]
    return chosen


def _are_alike(pairs: Sequence[Pair], reader: DeltaReader) -> bool:
    """Whether the weights are alike in all of these matrices, in spite of the size of the delta."""
    try:
        return all(reader.cosine(pair) >= ALIKE for pair in pairs)
    except CheckpointError:
        return False


def _relative_norm(pair: Pair, reader: DeltaReader, finished: Mapping[str, MatrixResult]) -> float | None:
    """||D|| / ||W0||; None if it cannot be read or stated."""
    if (result := finished.get(pair.name)) is not None:
        return result.relative_norm or None
    try:
        return reader.sums(pair).relative_norm
    except CheckpointError:
        return None
