"""What no figure of a verification covers: tensors that could not be compared, and those that change nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from deltarank.results import IgnoredTensor, Skipped, TensorFit, count, listing

NOT_FINITE_UPDATE = "what the adapter adds here contains NaN or Inf"


def is_broken(row: TensorFit) -> bool:
    """Whether the adapter, and not a checkpoint, puts NaN or Inf there."""
    return row.is_touched and row.reason == NOT_FINITE_UPDATE


def uncounted(rows: Sequence[TensorFit], skipped: Sequence[Skipped]) -> Iterator[str]:
    """Notes on the tensors that no figure includes, grouped by reason."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if not row.is_compared and not is_broken(row):
            reasons.setdefault(row.reason or row.outcome.sentence, []).append(row.name)
    for each in skipped:
        reasons.setdefault(each.reason, []).append(each.name)
    for reason, names in reasons.items():
        shown = listing([ascii(name)[1:-1][:120] for name in names], most=2)
        yield f"not counted: {count(len(names), 'tensor')} ({shown}): {reason}"


def unused_sentences(unused: Sequence[IgnoredTensor]) -> Iterator[str]:
    if unused:
        first = unused[0]
        yield (
            f"{count(len(unused), 'tensor')} of its file {'changes' if len(unused) == 1 else 'change'} nothing, "
            f"such as {first.name}: {first.reason}."
        )
