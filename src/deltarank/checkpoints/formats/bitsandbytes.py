"""Checkpoints that bitsandbytes quantised and transformers saved: 4 bits by a lookup table, 8 bits by row."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from deltarank.checkpoints.formats.decoded_source import Decoder, PartReader
from deltarank.checkpoints.formats.decoding_plan import DecodingPlan
from deltarank.checkpoints.formats.lookup_tables import lookup_pairs, multiply_groups_, pair_table
from deltarank.checkpoints.formats.packed_integers import integer_error
from deltarank.checkpoints.formats.safetensors_header import MAX_SIDES, TensorInfo
from deltarank.checkpoints.formats.scaled import ScaledDecoder, ScaleGrid
from deltarank.checkpoints.formats.storage import StorageFormat

_STATE = ".quant_state.bitsandbytes__"
_PARTS = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map")
FOUR_BIT_TYPES = {"nf4": ("NF4", 0.092), "fp4": ("FP4", 0.135)}
"""Name and rounding error of each type."""
_MAX_STATE_BYTES = 1 << 16

Tensors = Mapping[str, TensorInfo]


@dataclass(frozen=True)
class LookupDecoder(Decoder):
    """table[code] * absmax, two codes to a byte, the upper half first; an absmax covers `block` consecutive numbers.

    With double quantisation (Dettmers et al. 2023), absmax is quantised too: nested table[code] * nested absmax +
    `nested_offset`, where a nested absmax covers `nested_block` codes.
    """

    codes: TensorInfo
    absmax: TensorInfo
    table: TensorInfo
    shape: tuple[int, ...]
    block: int
    storage: StorageFormat
    nested_absmax: TensorInfo | None = None
    nested_table: TensorInfo | None = None
    nested_block: int = 0
    nested_offset: float = 0.0

    def decode(self, parts: PartReader, first: int, last: int) -> Tensor:
        columns = self.shape[-1]
        begin, end = first * columns, last * columns
        packed = parts.rows(self.codes, 1, begin // 2, -(-end // 2))
        table = pair_table(parts.whole(self.table).to(torch.float32), high_first=True)
        values = lookup_pairs(table, packed).view(-1)[begin % 2 :][: end - begin]
        absmax = self._read_absmax(parts, begin // self.block, (end - 1) // self.block + 1)
        if begin % self.block == 0 and end % self.block == 0:
            return multiply_groups_(values.view(-1, self.block), absmax.view(-1, 1), self.block).view(-1, columns)
        blocks = torch.arange(begin, end) // self.block - begin // self.block
        return (values * absmax[blocks]).view(-1, columns)

    def _read_absmax(self, parts: PartReader, first: int, last: int) -> Tensor:
        absmax = parts.rows(self.absmax, 1, first, last).view(-1)
        if self.nested_absmax is None or self.nested_table is None:
            return absmax.to(torch.float32)
        scales = parts.whole(self.nested_absmax).to(torch.float32)[torch.arange(first, last) // self.nested_block]
        return parts.whole(self.nested_table).to(torch.float32)[absmax.to(torch.int64)] * scales + self.nested_offset


def find_bitsandbytes(tensors: Tensors, parts: PartReader) -> DecodingPlan:
    """Weights with a `quant_state` (4 bits), and int8 weights with an `SCB` (8 bits)."""
    plan = DecodingPlan()
    states = [name for name in tensors if _STATE in name]
    parts.prefetch(tensors[name] for name in states)
    for state in states:
        name, _, kind = state.partition(_STATE)
        plan.used.update({state, name, *(name + part for part in _PARTS)} & tensors.keys())
        decoder = _four_bit_decoder(name, kind, _read_state(tensors[state], parts), tensors)
        if decoder is None:
            plan.used.discard(name)
        if name in tensors:
            plan.add_decoder(name, decoder, name, "its parts do not match as bitsandbytes stores them")
    for name, info in tensors.items():
        scales = tensors.get(f"{name.removesuffix('.weight')}.SCB")
        if info.dtype == "I8" and name.endswith(".weight") and scales is not None:
            _add_int8(plan, info, scales, tensors)
    return plan


def _add_int8(plan: DecodingPlan, codes: TensorInfo, scales: TensorInfo, tensors: Tensors) -> None:
    """code * SCB / 127, a scale for each row (Dettmers et al. 2022)."""
    grid = ScaleGrid.match(codes.shape, scales.shape, None)
    decoder = None
    if grid is not None:
        storage = StorageFormat("int8 (a scale for each row)", integer_error(8, codes.shape[-1]))
        decoder = ScaledDecoder(codes, scales, codes.shape, grid, storage, factor=1 / 127)
        plan.used.update({f"{codes.name}_format"} & tensors.keys())
    plan.add_decoder(codes.name, decoder, codes.name, "its SCB does not match its shape")


def _read_state(info: TensorInfo, parts: PartReader) -> Mapping[str, Any]:
    """The JSON that bitsandbytes stores as a tensor of bytes."""
    if info.dtype != "U8" or not 0 < info.nbytes <= _MAX_STATE_BYTES:
        return {}
    try:
        state = json.loads(bytes(parts.whole(info).tolist()).decode("utf-8"))
    except (ValueError, RecursionError):
        return {}
    return state if isinstance(state, dict) else {}


def _four_bit_decoder(name: str, kind: str, state: Mapping[str, Any], tensors: Tensors) -> LookupDecoder | None:
    codes, absmax, table = (tensors.get(name + part) for part in ("", ".absmax", ".quant_map"))
    shape, block = _shape(state.get("shape")), _positive_int(state.get("blocksize"))
    if codes is None or absmax is None or table is None or not shape or not block or kind not in FOUR_BIT_TYPES:
        return None
    entries = math.prod(shape)
    blocks = -(-entries // block)
    if codes.dtype != "U8" or codes.nbytes != -(-entries // 2) or absmax.entries != blocks or table.entries != 16:
        return None
    title, error = FOUR_BIT_TYPES[kind]
    decoder = LookupDecoder(codes, absmax, table, shape, block, StorageFormat(f"{title} (blocks of {block})", error))
    return _with_nested(decoder, name, state, tensors) if absmax.dtype == "U8" else decoder


def _with_nested(decoder: LookupDecoder, name: str, state: Mapping[str, Any], tensors: Tensors) -> LookupDecoder | None:
    absmax, table = tensors.get(f"{name}.nested_absmax"), tensors.get(f"{name}.nested_quant_map")
    block, offset = _positive_int(state.get("nested_blocksize")), state.get("nested_offset")
    if absmax is None or table is None or not block or not isinstance(offset, int | float) or table.entries != 256:
        return None
    if absmax.entries != -(-decoder.absmax.entries // block):
        return None
    return replace(decoder, nested_absmax=absmax, nested_table=table, nested_block=block, nested_offset=float(offset))


def _shape(value: object) -> tuple[int, ...]:
    """() for anything that is no shape."""
    if not isinstance(value, list) or not 0 < len(value) <= MAX_SIDES or not all(map(_positive_int, value)):
        return ()
    return tuple(value)


def _positive_int(value: object) -> int:
    """0 for anything else."""
    return value if type(value) is int and 0 < value < 2**40 else 0
