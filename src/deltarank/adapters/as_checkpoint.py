"""A LoRA as the finetune: its base, and what its factors add, seen as one more checkpoint.

W = W0 + L is worked out in float32 for the rows that are read, and is nowhere held whole. Tensors that the adapter
leaves alone are the base's own. Where only L is wanted, its factors are handed out as they are.
"""

from __future__ import annotations

import bisect
import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from deltarank.adapters.apply import Change, apply_adapter
from deltarank.adapters.file_names import CONFIG_FILE
from deltarank.adapters.read import LoraAdapter, open_adapter
from deltarank.adapters.update import LoraUpdate
from deltarank.checkpoints import (
    Checkpoint,
    Pair,
    Piece,
    SummedTensor,
    TensorInfo,
    find_adapter_folder,
    open_checkpoint,
    pair_checkpoints,
    read_rows,
)
from deltarank.errors import CheckpointError
from deltarank.results import Reference, count, listing

Ref = str | os.PathLike[str]

NO_CHECKPOINT = frozenset({"adapter-not-checkpoint", "no-weights", "cannot-stream", "several-checkpoints"})
"""Refusals of a folder or repository that may hold an adapter instead."""

MERGED = "(base + adapter)"
_FLOAT = 4
_STEP = 1 << 20
_MOST_KEPT = 4


def open_finetune(
    ref: Ref,
    base: Checkpoint,
    *,
    revision: str | None,
    fetch: str,
    on_note: Callable[[str], None] = lambda sentence: None,
) -> Checkpoint:
    """A checkpoint, or an adapter of PEFT on `base`. Close it before the base.

    Raises:
        UsageError, CheckpointError, HeaderError: as `open_checkpoint`.
        AdapterError: the adapter cannot be read, is of a kind that is not read, or is of another base.
    """
    try:
        return open_checkpoint(ref, revision=revision, fetch=fetch, on_note=on_note)
    except CheckpointError as error:
        found = find_adapter_folder(ref, revision) if error.slug in NO_CHECKPOINT else None
        if found is None:
            raise
    folder, name, commit = found
    adapter = open_adapter(folder)
    try:
        return _adapted(base, adapter, Reference(name, commit, dict(adapter.file.reference.files)))
    except BaseException:
        adapter.file.close()
        raise


def _adapted(base: Checkpoint, adapter: LoraAdapter, reference: Reference) -> Checkpoint:
    bare = Checkpoint(
        reference=reference,
        tensors=base.tensors,
        config=base.config,
        source=AdaptedSource(base, adapter, {}),
        fingerprint=f"{base.fingerprint} {adapter.file.fingerprint} {_mark(adapter)}",
    )
    pairing = pair_checkpoints(base, bare)
    targets: tuple[Pair | SummedTensor, ...] = (*pairing.pairs, *pairing.summed)
    applied = apply_adapter(adapter, targets, server=None, config=base.config)
    applied.refuse_broken()
    source = AdaptedSource(base, adapter, applied.changes)
    unused = [ascii(entry.name)[1:-1] for entry in applied.unused]
    notes = [f"the finetune is the base with a LoRA of {count(len(applied.changes), 'tensor')}, added in float32"]
    notes += applied.notes_on_biases(adapter)
    if unused:
        reason = applied.unused[0].reason
        names = listing(unused, most=2)
        notes.append(f"{count(len(unused), 'tensor')} of the adapter changes nothing: {names} ({reason})")
    tensors = {**base.tensors, **source.tensors}
    return replace(bare, source=source, tensors=tensors, notes=(*notes, *applied.notes))


def _mark(adapter: LoraAdapter) -> str:
    """Changes with the configuration: it has the scales."""
    return hashlib.sha256((Path(adapter.folder) / CONFIG_FILE).read_bytes()).hexdigest()


@dataclass(frozen=True)
class _Changed:
    """A tensor of the base that an adapter changes: as rows x columns, `height` rows to each matrix that it holds.

    names        what is changed, by the number of its matrix
    """

    piece: Piece
    height: int
    names: dict[int, str]


class AdaptedSource:
    """The base's files, and one that is not there, in which the changed tensors lie as plain float32."""

    def __init__(self, base: Checkpoint, adapter: LoraAdapter, changes: Mapping[str, Sequence[Change]]) -> None:
        self._base = base.source
        self._adapter = adapter
        self._changes = dict(changes)
        self._file = f"{next(iter(adapter.file.source.files))} {MERGED}"
        self._changed: dict[str, _Changed] = {}
        self.tensors: dict[str, TensorInfo] = {}
        self._effects: OrderedDict[str, LoraUpdate] = OrderedDict()
        self._lock = threading.Lock()
        start = 0
        for name, (first, *_) in self._changes.items():
            part = first.placement.target.base
            info = base.tensors[part.tensor]
            if info.name not in self.tensors:
                rows, columns = part.shape
                piece = Piece.of(info, base.source, (info.entries // columns, columns))
                self._changed[info.name] = _Changed(piece, rows, {})
                self.tensors[info.name] = TensorInfo(
                    info.name, info.shape, "F32", self._file, start, _FLOAT * info.entries
                )
                start += _FLOAT * info.entries
            self._changed[info.name].names[(part.start - info.start) // part.nbytes] = name
        self._names = list(self.tensors)
        self._starts = [info.start for info in self.tensors.values()]

    @property
    def files(self) -> Mapping[str, int]:
        """The adapter's own: they tell this checkpoint from its base."""
        return self._adapter.file.source.files

    def read_into(self, file: str, start: int, buffer: memoryview) -> None:
        if file != self._file:
            self._base.read_into(file, start, buffer)
            return
        if not buffer.nbytes:
            return
        out = torch.frombuffer(buffer, dtype=torch.uint8)
        name = self._names[bisect.bisect_right(self._starts, start) - 1]
        changed, place = self._changed[name], start - self.tensors[name].start
        row = _FLOAT * changed.piece.shape[1]
        first, last = place // row, -(-(place + buffer.nbytes) // row)
        skip, done = place - first * row, 0
        for begin in range(first - first % changed.height, last, changed.height):
            of_one = max(first, begin), min(last, begin + changed.height)
            for at, rows in read_rows(changed.piece, *of_one, entries=_STEP):
                values = self._merged(changed, begin, at, rows.to(torch.float32))
                flat = values.contiguous().view(-1).view(torch.uint8)[skip:]
                taken = min(len(flat), buffer.nbytes - done)
                out[done : done + taken] = flat[:taken]
                done, skip = done + taken, 0

    def _merged(self, changed: _Changed, begin: int, at: int, base: Tensor) -> Tensor:
        """Rows from `at` on of the matrix that begins at row `begin`."""
        name = changed.names.get(begin // changed.height)
        return base if name is None else self._effect(name).rows(at - begin, base).add_(base)

    def prefetch(self, file: str, start: int, length: int) -> None:
        if file != self._file:
            self._base.prefetch(file, start, length)
            return
        name = self._names[bisect.bisect_right(self._starts, start) - 1]
        piece, place = self._changed[name].piece, start - self.tensors[name].start
        size = piece.dtype.itemsize
        self._base.prefetch(piece.file, piece.start + place // _FLOAT * size, length // _FLOAT * size)

    def factors(self, name: str) -> tuple[Tensor, Tensor] | None:
        """Left (rows, k) and right (k, columns) in float64, whose product is all that is added; None if more is."""
        changes = self._changes.get(name, ())
        if not changes or any(not change.placement.part.is_lora for change in changes):
            return None
        products = [self._product(change) for change in changes]
        return torch.cat([left for left, _ in products], dim=1), torch.cat([right for _, right in products])

    def _product(self, change: Change) -> tuple[Tensor, Tensor]:
        part = change.placement.part
        down, up = (factor.to(torch.float64) for factor in self._adapter.factors(part))
        left, right = (down.T, up.T) if change.placement.transposed else (up, down)
        rows = change.placement.target.base.shape[0]
        return change.scale * left[:rows], right

    def _effect(self, name: str) -> LoraUpdate:
        with self._lock:
            found = self._effects.pop(name, None)
            if found is None:
                found = LoraUpdate(self._adapter, self._changes[name], device=torch.device("cpu"), dtype=torch.float32)
            self._effects[name] = found
            while len(self._effects) > _MOST_KEPT:
                self._effects.popitem(last=False)
            return found

    def interrupt(self) -> None:
        self._base.interrupt()

    def identity(self, file: str) -> str:
        """Unchanged tensors are the base's own bytes."""
        if file == self._file:
            return f"adapted {id(self)} {file}"
        owned = file in self.files and file not in self._base.files
        return (self._adapter.file.source if owned else self._base).identity(file)

    def fingerprint(self, file: str) -> str:
        return self._adapter.file.source.fingerprint(file) if file in self.files else self._base.fingerprint(file)

    def close(self) -> None:
        """The adapter's file; the base belongs to who opened it."""
        self._adapter.file.close()


def is_adapted(pair: Pair) -> bool:
    """Whether the finetune's side is worked out from an adapter."""
    return pair.finetune.file.endswith(MERGED) and isinstance(pair.finetune.source, AdaptedSource)


def low_rank_factors(pair: Pair) -> tuple[Tensor, Tensor] | None:
    """The factors of a delta that has them, if they are thinner than half of its matrix; else it is solved as it is."""
    source = pair.finetune.source
    if not isinstance(source, AdaptedSource):
        return None
    found = source.factors(pair.name)
    if found is None or (found[0].shape[0], found[1].shape[1]) != pair.shape:
        return None
    return found if 2 * found[0].shape[1] <= min(pair.shape) else None
