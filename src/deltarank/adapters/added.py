"""How much of an adapter's file is added to the base."""

from __future__ import annotations

from collections.abc import Set

from deltarank.adapters.apply import Applied
from deltarank.adapters.parts import NEW_TENSOR
from deltarank.adapters.read import LoraAdapter
from deltarank.results import AddedAdapter


def added_adapter(adapter: LoraAdapter, applied: Applied) -> AddedAdapter:
    """The ranks of what is added, and the numbers in the file that are not."""
    parts = [change.placement.part for changes in applied.changes.values() for change in changes]
    stored = adapter.file.tensors
    unloaded = (
        _names_of(adapter, {entry.name for entry in applied.unused if entry.reason != NEW_TENSOR}) & stored.keys()
    )
    used = {info.name for part in parts for info in (part.up, part.down) if info is not None}
    return AddedAdapter(
        tuple(sorted({part.rank for part in parts if part.is_lora})),
        sum(info.entries for info in stored.values()),
        sum(stored[name].entries for name in unloaded - used),
    )


def _names_of(adapter: LoraAdapter, unused: Set[str]) -> set[str]:
    """With A, where B stands for the LoRA."""
    downs = {part.down.name for part in adapter.parts if part.down is not None and part.up.name in unused}
    return {*unused, *downs}
