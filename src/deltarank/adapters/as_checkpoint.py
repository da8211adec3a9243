"""A LoRA as the finetune: a checkpoint whose tensors are those of the base plus what the adapter adds.

W = W0 + L is computed in float32 for the rows that are read, and is never held whole. Tensors that the adapter does not
change are the base's own. Where only L is needed, its factors are available without forming the product.
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
from typing import Any

import torch
from torch import Tensor

from deltarank.adapters.added import added_adapter
from deltarank.adapters.apply import Change, apply_adapter
from deltarank.adapters.file_names import CONFIG_FILE
from deltarank.adapters.other_formats import refuse_other_adapter, refuse_other_adapters_in
from deltarank.adapters.read import LoraAdapter, open_adapter
from deltarank.adapters.update import LoraUpdate
from deltarank.checkpoints import (
    Checkpoint,
    Pair,
    Piece,
    SummedTensor,
    TensorInfo,
    find_adapter_folder,
    hub_ids,
    is_adapter_file,
    open_checkpoint,
    pair_checkpoints,
    quoted,
    read_rows,
)
from deltarank.errors import AdapterError, CheckpointError
from deltarank.results import Reference, count, listing
from deltarank.system import user_path

Ref = str | os.PathLike[str]

_MAY_BE_ADAPTER = frozenset({"adapter-not-checkpoint", "no-weights", "cannot-stream", "several-checkpoints"})
"""Slugs of errors that a folder or repository can cause because it holds an adapter."""

_SUM_FILE_SUFFIX = "(base + adapter)"
_FLOAT_BYTES = 4
_MAX_ENTRIES = 1 << 20
_MAX_CACHED = 4


def open_finetune(
    ref: Ref,
    base: Checkpoint,
    *,
    revision: str | None,
    fetch: str,
    on_note: Callable[[str], None] = lambda sentence: None,
) -> Checkpoint:
    """Opens the finetune: a checkpoint, or a PEFT adapter on `base`. Close it before the base.

    Raises:
        UsageError, CheckpointError, HeaderError: as `open_checkpoint`.
        AdapterError: the adapter cannot be read, is of a kind that is not supported, belongs to another base, or lies
            beside whole weights.
    """
    adapter = find_adapter_folder(ref, revision) if is_adapter_file(ref) else None
    if adapter is None:
        try:
            return _without_adapter(open_checkpoint(ref, revision=revision, fetch=fetch, on_note=on_note))
        except CheckpointError as error:
            adapter = find_adapter_folder(ref, revision) if error.slug in _MAY_BE_ADAPTER else None
            if adapter is None:
                refuse_other_adapters_in(user_path(ref))
                raise
    named = user_path(ref).name if is_adapter_file(ref) else CONFIG_FILE
    return _open_adapted(base, adapter, None if named == CONFIG_FILE else named)


def _open_adapted(base: Checkpoint, found: tuple[Path, str, str | None], weights: str | None) -> Checkpoint:
    folder, name, commit = found
    adapter = open_adapter(folder, weights=weights)
    try:
        return _sum_checkpoint(base, adapter, Reference(name, commit, dict(adapter.file.reference.files)))
    except BaseException:
        adapter.file.close()
        raise


def _without_adapter(checkpoint: Checkpoint) -> Checkpoint:
    """Refuses whole weights with an adapter beside them: they may be the base, or the merged finetune."""
    if checkpoint.adapter is None:
        refuse_other_adapter(checkpoint)
        return checkpoint
    checkpoint.close()
    folder, files = checkpoint.adapter.parent, list(checkpoint.reference.files)
    weights = quoted(folder / files[0], max_length=300)
    raise AdapterError(
        f"{quoted(checkpoint.reference.ref, max_length=300)} contains both whole weights and an adapter "
        f"({quoted(checkpoint.adapter.name)}). Either may be the finetune: the weights may be merged, or the base's.",
        cure=f"Give the path of the file that is meant: {weights} for the weights, "
        f"{quoted(checkpoint.adapter, max_length=300)} for the adapter on BASE. Download a model of the Hub first.",
        slug="adapter-beside-weights",
    )


def _sum_checkpoint(base: Checkpoint, adapter: LoraAdapter, reference: Reference) -> Checkpoint:
    unchanged = Checkpoint(
        reference=reference,
        tensors=base.tensors,
        config=base.config,
        source=AdaptedSource(base, adapter, {}, ()),
        run_as=base.reference,
        fingerprint=f"{base.fingerprint} {adapter.file.fingerprint} {_config_digest(adapter)}",
        named_bases=hub_ids([adapter.config.base]),
    )
    pairing = pair_checkpoints(base, unchanged)
    targets: tuple[Pair | SummedTensor, ...] = (*pairing.pairs, *pairing.summed)
    applied = apply_adapter(adapter, targets, server=None, base=base)
    applied.check_loads_in_peft()
    source = AdaptedSource(base, adapter, applied.changes, applied.untied)
    unused = [quoted(entry.name) for entry in applied.unused]
    notes = [f"the finetune is the base with a LoRA on {count(len(applied.changes), 'tensor')}, added in float32"]
    notes += applied.left_out_biases(adapter)
    if unused:
        reason = applied.unused[0].reason
        names = listing(unused, most=2)
        verb = "changes" if len(unused) == 1 else "change"
        notes.append(f"{count(len(unused), 'tensor')} of the adapter {verb} nothing: {names} ({reason})")
    if applied.unloaded is not None:
        notes.insert(0, applied.unloaded.sentence.removesuffix("."))
    return replace(
        unchanged,
        source=source,
        tensors={**base.tensors, **source.tensors},
        config=_without_tie(base.config) if applied.untied else base.config,
        notes=(*notes, *applied.notes),
        added=added_adapter(adapter, applied),
    )


def _without_tie(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a model whose output head is a tensor of its own."""
    text = config.get("text_config")
    nested = {"text_config": {**text, "tie_word_embeddings": False}} if isinstance(text, dict) else {}
    return {**config, **nested, "tie_word_embeddings": False}


def _config_digest(adapter: LoraAdapter) -> str:
    """Part of the fingerprint, because the configuration holds the scales."""
    return hashlib.sha256((Path(adapter.folder) / CONFIG_FILE).read_bytes()).hexdigest()


@dataclass(frozen=True)
class _ChangedTensor:
    """A tensor of the base that an adapter changes, as rows x columns. It holds one or more matrices of equal height.

    height       the rows of each matrix
    names        the names of the matrices that change, by their index in the tensor
    """

    piece: Piece
    height: int
    names: dict[int, str]


class AdaptedSource:
    """The base's files, and one virtual file that holds the changed tensors in float32."""

    def __init__(
        self,
        base: Checkpoint,
        adapter: LoraAdapter,
        changes: Mapping[str, Sequence[Change]],
        untied: Sequence[SummedTensor],
    ) -> None:
        self._base = base.source
        self._adapter = adapter
        self._changes = dict(changes)
        self._file = f"{next(iter(adapter.file.source.files))} {_SUM_FILE_SUFFIX}"
        self._changed: dict[str, _ChangedTensor] = {}
        self.tensors: dict[str, TensorInfo] = {}
        self._updates: OrderedDict[str, LoraUpdate] = OrderedDict()
        self._lock = threading.Lock()
        start = 0
        heads = {target.name: target for target in untied}
        changed = {name: first.placement.target for name, (first, *_) in self._changes.items()}
        for name, target in {**changed, **heads}.items():
            part = target.base
            info = base.tensors[part.tensor]
            tensor = name if name in heads else info.name
            if tensor not in self.tensors:
                rows, columns = part.shape
                piece = Piece.from_info(info, base.source, (info.entries // columns, columns))
                self._changed[tensor] = _ChangedTensor(piece, rows, {})
                size = _FLOAT_BYTES * info.entries
                self.tensors[tensor] = TensorInfo(tensor, info.shape, "F32", self._file, start, size)
                start += size
            if name in self._changes:
                self._changed[tensor].names[(part.start - info.start) // part.nbytes] = name
        self._names = list(self.tensors)
        self._starts = [info.start for info in self.tensors.values()]

    def __getstate__(self) -> dict[str, Any]:
        """Without what is cached."""
        return {name: value for name, value in vars(self).items() if name not in ("_updates", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _updates=OrderedDict(), _lock=threading.Lock())

    @property
    def files(self) -> Mapping[str, int]:
        """The adapter's own files, which distinguish this checkpoint from its base."""
        return self._adapter.file.source.files

    def read_into(self, file: str, start: int, buffer: memoryview) -> None:
        if file != self._file:
            self._base.read_into(file, start, buffer)
            return
        if not buffer.nbytes:
            return
        out = torch.frombuffer(buffer, dtype=torch.uint8)
        changed, position = self._find(start)
        row_bytes = _FLOAT_BYTES * changed.piece.shape[1]
        first, last = position // row_bytes, -(-(position + buffer.nbytes) // row_bytes)
        skip, done = position - first * row_bytes, 0
        for begin in range(first - first % changed.height, last, changed.height):
            of_one_matrix = max(first, begin), min(last, begin + changed.height)
            for at, rows in read_rows(changed.piece, *of_one_matrix, entries=_MAX_ENTRIES):
                values = self._add_update(changed, begin, at, rows.to(torch.float32))
                flat = values.contiguous().view(-1).view(torch.uint8)[skip:]
                taken = min(len(flat), buffer.nbytes - done)
                out[done : done + taken] = flat[:taken]
                done, skip = done + taken, 0

    def _find(self, start: int) -> tuple[_ChangedTensor, int]:
        """The changed tensor that holds byte `start` of the virtual file, and the byte's position in it."""
        name = self._names[bisect.bisect_right(self._starts, start) - 1]
        return self._changed[name], start - self.tensors[name].start

    def _add_update(self, changed: _ChangedTensor, begin: int, at: int, base: Tensor) -> Tensor:
        """Rows from `at` on of the tensor; they belong to the matrix that begins at row `begin`."""
        name = changed.names.get(begin // changed.height)
        return base if name is None else self._update(name).rows(at - begin, base).add_(base)

    def prefetch(self, file: str, start: int, length: int) -> None:
        if file != self._file:
            self._base.prefetch(file, start, length)
            return
        changed, position = self._find(start)
        piece, itemsize = changed.piece, changed.piece.dtype.itemsize
        self._base.prefetch(
            piece.file, piece.start + position // _FLOAT_BYTES * itemsize, length // _FLOAT_BYTES * itemsize
        )

    def factors(self, name: str) -> tuple[Tensor, Tensor] | None:
        """Left (rows, k) and right (k, columns) in float64 whose product is L; None if L is not a product."""
        changes = self._changes.get(name, ())
        if not changes or any(not change.placement.part.is_lora for change in changes):
            return None
        products = [self._scaled_factors(change) for change in changes]
        return torch.cat([left for left, _ in products], dim=1), torch.cat([right for _, right in products])

    def _scaled_factors(self, change: Change) -> tuple[Tensor, Tensor]:
        part = change.placement.part
        down, up = (factor.to(torch.float64) for factor in self._adapter.factors(part))
        left, right = (down.T, up.T) if change.placement.is_transposed else (up, down)
        rows = change.placement.target.base.shape[0]
        return change.scale * left[:rows], right

    def _update(self, name: str) -> LoraUpdate:
        with self._lock:
            update = self._updates.pop(name, None)
            if update is None:
                update = LoraUpdate(self._adapter, self._changes[name], device=torch.device("cpu"), dtype=torch.float32)
            self._updates[name] = update
            while len(self._updates) > _MAX_CACHED:
                self._updates.popitem(last=False)
            return update

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
        """Closes the adapter's file. Whoever opened the base closes it."""
        self._adapter.file.close()


def is_adapted(pair: Pair) -> bool:
    """Whether the finetune's side of a pair is computed from an adapter."""
    return pair.finetune.file.endswith(_SUM_FILE_SUFFIX) and isinstance(pair.finetune.source, AdaptedSource)


def low_rank_factors(pair: Pair) -> tuple[Tensor, Tensor] | None:
    """The factors of a delta, if it is a product whose rank is at most half of the short side; else None."""
    source = pair.finetune.source
    if not isinstance(source, AdaptedSource):
        return None
    factors = source.factors(pair.name)
    if factors is None or (factors[0].shape[0], factors[1].shape[1]) != pair.shape:
        return None
    return factors if 2 * factors[0].shape[1] <= min(pair.shape) else None
