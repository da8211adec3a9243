"""Checkpoints that bitsandbytes quantised and transformers saved: 4 bits by a table, 8 bits by row."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deltarank.checkpoints.formats.decoded_source import Parts
from deltarank.checkpoints.formats.found import Found
from deltarank.checkpoints.formats.lookup_tables import looked_up_pairs, pairs_of, scaled
from deltarank.checkpoints.formats.packed_integers import integer_error
from deltarank.checkpoints.formats.safetensors_header import MAX_SIDES, TensorInfo
from deltarank.checkpoints.formats.scaled import Grid, Scaled
from deltarank.checkpoints.formats.storage import Storage

_STATE = ".quant_state.bitsandbytes__"
_PARTS = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map")
_KINDS = {"nf4": ("NF4", 0.092), "fp4": ("FP4", 0.135)}
_MOST_STATE = 1 << 16


@dataclass(frozen=True)
class Tabled:
    """table[code] * absmax, two codes to a byte, the upper half first; `absmax` counts for `block` numbers in a row.

    Where absmax is quantised too: nested table[absmax] * nested absmax + offset (Dettmers et al. 2023).
    """

    codes: TensorInfo
    absmax: TensorInfo
    table: TensorInfo
    shape: tuple[int, ...]
    block: int
    storage: Storage
    nested: tuple[TensorInfo, TensorInfo, int, float] | None = None

    @property
    def parts(self) -> Sequence[TensorInfo]:
        inner = self.nested[:2] if self.nested else ()
        return (self.codes, self.absmax, self.table, *inner)

    def decode(self, parts: Parts, first: int, last: int) -> Tensor:
        columns = self.shape[-1]
        begin, end = first * columns, last * columns
        packed = parts.rows(self.codes, 1, begin // 2, -(-end // 2))
        table = pairs_of(parts.whole(self.table).to(torch.float32), high_first=True)
        values = looked_up_pairs(table, packed).view(-1)[begin % 2 :][: end - begin]
        largest = self._largest(parts, begin // self.block, (end - 1) // self.block + 1)
        if begin % self.block == 0 and end % self.block == 0:
            return scaled(values.view(-1, self.block), largest.view(-1, 1), self.block).view(-1, columns)
        blocks = torch.arange(begin, end) // self.block - begin // self.block
        return (values * largest[blocks]).view(-1, columns)

    def _largest(self, parts: Parts, first: int, last: int) -> Tensor:
        found = parts.rows(self.absmax, 1, first, last).view(-1)
        if self.nested is None:
            return found.to(torch.float32)
        absmax, table, block, offset = self.nested
        outer = parts.whole(absmax).to(torch.float32)[torch.arange(first, last) // block]
        return parts.whole(table).to(torch.float32)[found.to(torch.int64)] * outer + offset


def find_bnb(tensors: Mapping[str, TensorInfo], parts: Parts) -> Found:
    """Weights with a `quant_state` (4 bits), and weights of int8 with an `SCB` (8 bits)."""
    found = Found()
    states = [name for name in tensors if _STATE in name]
    parts.prefetch(tensors[name] for name in states)
    for state in states:
        name, _, kind = state.partition(_STATE)
        found.used.update({state, name, *(name + part for part in _PARTS)} & tensors.keys())
        decoder = _four(name, kind, _state_of(tensors[state], parts), tensors)
        if decoder is None:
            found.used.discard(name)
            if name in tensors:
                found.refused[name] = "its parts do not fit each other as bitsandbytes stores them"
        else:
            found.decoders[name] = decoder
    for name, info in tensors.items():
        scales = tensors.get(f"{name.removesuffix('.weight')}.SCB")
        if info.dtype == "I8" and name.endswith(".weight") and scales is not None:
            _add_eight(found, info, scales, tensors)
    return found


def _add_eight(found: Found, codes: TensorInfo, scales: TensorInfo, tensors: Mapping[str, TensorInfo]) -> None:
    """code * SCB / 127, a scale for each row (Dettmers et al. 2022)."""
    grid = Grid.of(codes.shape, scales.shape, None)
    if grid is None:
        found.refused[codes.name] = "its SCB does not fit it"
        return
    storage = Storage("int8 (a scale for each row)", integer_error(8, codes.shape[-1]))
    found.decoders[codes.name] = Scaled(codes, scales, grid, storage, factor=1 / 127)
    found.used.update({codes.name, scales.name, f"{codes.name}_format"} & tensors.keys())


def _state_of(info: TensorInfo, parts: Parts) -> Mapping[str, Any]:
    """The JSON that bitsandbytes keeps as a tensor of bytes."""
    if info.dtype != "U8" or not 0 < info.nbytes <= _MOST_STATE:
        return {}
    try:
        state = json.loads(bytes(parts.whole(info).tolist()).decode("utf-8"))
    except (ValueError, RecursionError):
        return {}
    return state if isinstance(state, dict) else {}


def _four(name: str, kind: str, state: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> Tabled | None:
    codes, absmax, table = (tensors.get(name + part) for part in ("", ".absmax", ".quant_map"))
    shape, block = _sides(state.get("shape")), _whole(state.get("blocksize"))
    if codes is None or absmax is None or table is None or not shape or not block or kind not in _KINDS:
        return None
    entries = math.prod(shape)
    blocks = -(-entries // block)
    if codes.dtype != "U8" or codes.nbytes != -(-entries // 2) or absmax.entries != blocks or table.entries != 16:
        return None
    nested = None
    if absmax.dtype == "U8":
        nested = _nested(name, state, tensors, blocks)
        if nested is None:
            return None
    title, error = _KINDS[kind]
    return Tabled(codes, absmax, table, shape, block, Storage(f"{title} (blocks of {block})", error), nested)


def _nested(
    name: str, state: Mapping[str, Any], tensors: Mapping[str, TensorInfo], blocks: int
) -> tuple[TensorInfo, TensorInfo, int, float] | None:
    absmax, table = tensors.get(f"{name}.nested_absmax"), tensors.get(f"{name}.nested_quant_map")
    block, offset = _whole(state.get("nested_blocksize")), state.get("nested_offset")
    if absmax is None or table is None or not block or not isinstance(offset, int | float) or table.entries != 256:
        return None
    return (absmax, table, block, float(offset)) if absmax.entries == -(-blocks // block) else None


def _sides(value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or not 0 < len(value) <= MAX_SIDES or not all(_whole(side) for side in value):
        return ()
    return tuple(value)


def _whole(value: object) -> int:
    """A positive whole number; 0 for anything else."""
    return value if type(value) is int and 0 < value < 2**40 else 0
